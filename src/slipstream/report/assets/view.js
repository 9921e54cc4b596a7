/* The list of runs, and the sections of those that are chosen; both follow the folder. */
"use strict";

(() => {
  const POLL = 2000; // milliseconds between checks of the folder
  const REST = 250; // milliseconds before weights are read, so that clicking through runs stays fast
  const RATIO = 4; // a section is computed again only after that many times as long as it took
  const settings = JSON.parse(document.getElementById("settings").textContent);
  const body = document.querySelector("#runs tbody");
  const main = document.getElementById("sections");
  const status = document.getElementById("status");
  const filter = document.getElementById("filter");
  let listed = []; // from the server
  let tag = "";
  let running = null; // aborts the requests of the choice before
  const took = {}; // section to [milliseconds, when]

  const chosen = () => new URLSearchParams(location.hash.slice(1)).getAll("run");
  const address = (ids) => "#" + new URLSearchParams(ids.map((id) => ["run", id])).toString();
  const query = (ids) => new URLSearchParams(ids.map((id) => ["run", id])).toString();

  /* ---- the list ---- */

  function ago(seconds) {
    const past = Math.max(0, Date.now() / 1000 - seconds);
    const units = [["s", 60], ["min", 60], ["h", 24], ["d", Infinity]];
    let value = past;
    for (const [unit, most] of units) {
      if (value < most) return `${Math.floor(value)} ${unit}`;
      value /= most;
    }
    return "";
  }

  function rowOf(run) {
    const row = document.createElement("tr");
    row.dataset.id = run.id;
    const box = document.createElement("input");
    Object.assign(box, { type: "checkbox", title: "Compare" });
    box.setAttribute("aria-label", `Compare ${run.id}`);
    box.addEventListener("change", () => {
      const others = chosen().filter((id) => id !== run.id);
      location.hash = address(box.checked ? [...others, run.id] : others);
    });
    const link = document.createElement("a");
    link.href = address([run.id]);
    for (const part of [[box], [link, document.createElement("small")], [], []]) {
      const cell = document.createElement("td");
      cell.append(...part);
      row.append(cell);
    }
    row.children[2].className = row.children[3].className = "number";
    return row;
  }

  function fill(row, run) {
    const [, name, step, changed] = row.children;
    name.firstChild.textContent = run.id === "." ? "this folder" : run.id;
    name.lastChild.textContent = run.problem || run.metrics || run.state;
    name.lastChild.className = `state-${run.state}`;
    name.lastChild.title = run.state;
    step.textContent = run.step === null ? "–" : run.step.toLocaleString("en");
    step.dataset.value = run.step === null ? -1 : run.step;
    changed.textContent = ago(run.changed);
    changed.dataset.value = Date.now() / 1000 - run.changed;
  }

  function list() {
    const rows = new Map([...body.rows].map((row) => [row.dataset.id, row]));
    for (const run of listed) {
      const row = rows.get(run.id) || body.appendChild(rowOf(run));
      rows.delete(run.id);
      fill(row, run);
    }
    for (const row of rows.values()) row.remove();
    mark();
  }

  function mark() {
    const ids = chosen();
    const wanted = filter.value.toLowerCase();
    for (const row of body.rows) {
      const on = ids.includes(row.dataset.id);
      row.classList.toggle("chosen", on);
      row.querySelector("input").checked = on;
      row.hidden = !row.dataset.id.toLowerCase().includes(wanted);
    }
  }

  async function look() {
    try {
      const answer = await fetch("/runs", { headers: tag ? { "If-None-Match": tag } : {} });
      if (answer.status === 200) {
        tag = answer.headers.get("ETag");
        const before = new Map(listed.map((run) => [run.id, run.fingerprint]));
        listed = await answer.json();
        list();
        if (chosen().some((id) => before.has(id) && before.get(id) !== listed.find((run) => run.id === id)?.fingerprint)) stale = true;
      } else for (const row of body.rows) fill(row, listed.find((run) => run.id === row.dataset.id));
      const recording = listed.filter((run) => run.state === "recording").length;
      status.className = "";
      status.textContent = `${listed.length} runs${recording ? `, ${recording} being recorded` : ""}`;
      if (!listed.length) document.getElementById("title").textContent = "No run here yet";
    } catch {
      status.className = "lost";
      status.textContent = "The server does not answer: was `slipstream view` stopped?";
    }
  }

  /* ---- the sections ---- */

  let stale = false; // whether what is shown has changed since

  function placeholder(key, question) {
    const section = document.createElement("section");
    section.id = key;
    const heading = document.createElement("h2");
    heading.textContent = question;
    const waiting = document.createElement("div");
    waiting.className = "waiting";
    waiting.append(document.createElement("p"));
    waiting.firstChild.textContent = key === "run" ? "" : "Reading the run";
    section.append(heading, waiting);
    return section;
  }

  function replace(section, html) {
    const holder = document.createElement("template");
    holder.innerHTML = html;
    const fresh = holder.content.firstElementChild;
    const unfolded = [...section.querySelectorAll("details")].map((one) => one.open);
    fresh.querySelectorAll("details").forEach((one, n) => { one.open = unfolded[n] || false; });
    section.replaceWith(fresh);
    Page.adopt(fresh);
    Page.settle(fresh);
  }

  async function load(key, ids, signal) {
    const begun = performance.now();
    const answer = await fetch(`/section/${key}?${query(ids)}`, { signal });
    const text = await answer.text();
    if (signal.aborted) return;
    took[key] = [performance.now() - begun, performance.now()];
    const section = document.getElementById(key);
    if (answer.ok) {
      if (section.dataset.text !== tagOf(answer)) {
        replace(section, text);
        document.getElementById(key).dataset.text = tagOf(answer);
      }
    } else {
      section.querySelector(".items, .waiting").replaceChildren(Object.assign(document.createElement("p"), { className: "note", textContent: text }));
    }
  }

  const tagOf = (answer) => answer.headers.get("ETag");

  async function loadAll(keys) {
    running?.abort();
    running = new AbortController();
    const { signal } = running;
    const ids = chosen();
    try {
      for (const key of keys) {
        await load(key, ids, signal); // the quick one first
        if (key === "run") await new Promise((go) => setTimeout(go, REST));
        if (signal.aborted) return; // another run was chosen meanwhile
      }
    } catch (error) {
      if (error.name !== "AbortError") status.textContent = "A section could not be loaded.";
    }
    if (running?.signal === signal) running = null;
  }

  function choose() {
    const ids = chosen();
    if (!ids.length && location.hash) return; // a link to a question
    mark();
    Page.hidden.clear();
    for (const key of Object.keys(took)) delete took[key];
    const known = ids.length > 0;
    document.getElementById("title").textContent = known ? ids.join(" and ") : "Choose a run";
    document.getElementById("questions").hidden = !known;
    legend(ids);
    main.replaceChildren(...(known ? settings.questions.map(([key, question]) => placeholder(key, question)) : []));
    if (known) loadAll(settings.questions.map(([key]) => key));
  }

  function legend(ids) {
    const box = document.getElementById("legend");
    box.hidden = ids.length < 2;
    box.replaceChildren(...ids.map((id, number) => {
      const label = document.createElement("label");
      const toggle = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
      toggle.dataset.toggle = number;
      const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
      swatch.dataset.colour = settings.runs[number % settings.runs.length];
      label.append(toggle, swatch, id);
      return label;
    }));
    Page.adopt(box);
  }

  async function refresh() {
    if (!document.hidden) await look();
    if (stale && !running && chosen().length) {
      const now = performance.now();
      const due = settings.questions.map(([key]) => key).filter((key) => !took[key] || now - took[key][1] > RATIO * took[key][0]);
      stale = due.length < settings.questions.length;
      loadAll(due);
    }
    setTimeout(refresh, POLL);
  }

  document.getElementById("questions").addEventListener("click", (event) => {
    const key = event.target.dataset.section;
    if (!key) return;
    event.preventDefault(); // the address holds the runs
    document.getElementById(key)?.scrollIntoView();
  });
  filter.addEventListener("input", mark);
  addEventListener("hashchange", choose);
  choose();
  refresh();
})();
