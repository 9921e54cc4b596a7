"""Porting on disk: what we write, transformers and PEFT read, and it computes what it should."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from slipstream.matching.products import Product
from slipstream.porting import FineTune, PortPlan, checkpoint_task, port_checkpoint
from slipstream.pretrained import example_input_for
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.weights import clone, load_weights_, weights_of

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

# What transformers and PEFT warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 2,
    "vocab_size": 40,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
IDS = torch.arange(24).view(2, 12)


def llama(seed, **changes):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(**{**LLAMA, **changes})
    return transformers.LlamaForCausalLM(config).eval()


def gpt2(seed):
    torch.manual_seed(seed)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).eval()


def shifted(model, *, scale=0.1, seed=5):
    """Move every parameter a little, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=scale * float(parameter.std()) + 0.01 * scale)
    return model


def reordered(build):
    """A model, and one that computes the same with its neurons in another order; what may move."""
    model = build(0)
    found = find_neuron_groups(model, example_input_for(model), signs=False)
    # Without heads: their matching has tests of its own, and a rough one would hide a mistake here.
    groups = found.keep([g.name for g in found.groups if "attn" not in g.name])
    order = Permutation.random(groups, seed=3)
    other = build(0)
    load_weights_(other, order.apply(clone(weights_of(model))))
    return model, other, groups


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def saved(folder, **models):
    for name, model in models.items():
        model.save_pretrained(folder / name, max_shard_size="20KB" if name == "other" else "1GB")
    return {
        "from_base": folder / "base",
        "fine_tuned": folder / "tuned",
        "to_base": folder / "other",
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, its fine-tune, and the base reordered, in shards; and what the fine-tune computes."""
    base, other, groups = reordered(llama)
    paths = saved(tmp_path_factory.mktemp("llama"), base=base, other=other)
    tuned = shifted(base)
    tuned.save_pretrained(paths["fine_tuned"])
    return paths, logits(tuned), groups


# what we write is read


def test_a_reordered_base_gets_what_computes_the_same_as_the_fine_tune(folders, tmp_path):
    paths, expected, groups = folders
    result = port_checkpoint(tmp_path / "out", FineTune(**paths), groups=groups)
    assert (result.regime, result.method) == ("independent", "weights")
    ported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(ported), expected, atol=1e-5)
    plain = port_checkpoint(tmp_path / "plain", FineTune(**paths), plan=PortPlan("identity"))
    assert plain.method == "identity"
    wrong = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert not torch.allclose(logits(wrong), expected, atol=1e-2)


def test_the_output_has_the_files_of_the_other_base_and_a_report(folders, tmp_path):
    paths, *_ = folders
    result = port_checkpoint(tmp_path / "out", FineTune(**paths), plan=PortPlan("identity"))
    before = {path.name for path in paths["to_base"].iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == before | {"port.json"}
    report = json.loads((tmp_path / "out" / "port.json").read_text())
    assert report == json.loads(json.dumps(result.to_json()))
    assert not list(tmp_path.glob(".out*"))


def test_single_files_in_half_precision(folders, tmp_path):
    paths, *_ = folders
    held = {}
    for name, path in paths.items():
        tensors = {
            n: v.bfloat16() for f in path.glob("*.safetensors") for n, v in load_file(f).items()
        }
        held[name] = tensors
        save_file(tensors, tmp_path / f"{name}.safetensors")
    files = {name: tmp_path / f"{name}.safetensors" for name in paths}
    port_checkpoint(tmp_path / "out.safetensors", FineTune(**files), plan=PortPlan("identity"))
    ported = load_file(tmp_path / "out.safetensors")
    for name, value in ported.items():
        moved = held["fine_tuned"][name].float() - held["from_base"][name].float()
        assert torch.equal(value, (held["to_base"][name].float() + moved).bfloat16())
    assert (tmp_path / "out.port.json").is_file()


def test_pickled_weights_come_out_as_safetensors(folders, tmp_path):
    paths, *_ = folders
    shutil.copytree(paths["from_base"], tmp_path / "old")
    torch.save(
        load_file(tmp_path / "old" / "model.safetensors"), tmp_path / "old" / "pytorch_model.bin"
    )
    (tmp_path / "old" / "model.safetensors").unlink()
    given = {**paths, "from_base": tmp_path / "old", "to_base": tmp_path / "old"}
    port_checkpoint(tmp_path / "out", FineTune(**given))
    ported = load_file(tmp_path / "out" / "model.safetensors")
    tuned = load_file(paths["fine_tuned"] / "model.safetensors")
    assert all(torch.allclose(value, tuned[name]) for name, value in ported.items())


def test_a_body_without_its_head_is_found_under_its_prefix(folders, tmp_path):
    paths, *_ = folders
    body = transformers.AutoModelForCausalLM.from_pretrained(paths["from_base"]).model
    body.save_pretrained(tmp_path / "body")
    given = {**paths, "from_base": tmp_path / "body", "to_base": tmp_path / "body"}
    result = port_checkpoint(tmp_path / "out", FineTune(**given), plan=PortPlan("identity"))
    assert any("lm_head.weight" in warning for warning in result.warnings)
    ported = transformers.AutoModel.from_pretrained(tmp_path / "out")
    tuned = transformers.AutoModelForCausalLM.from_pretrained(paths["fine_tuned"])
    for name, value in weights_of(tuned.model).items():
        assert torch.allclose(value, weights_of(ported)[name], atol=1e-6)


def test_the_own_loss_of_a_model_chooses_and_signs(folders, tmp_path):
    paths, *_ = folders
    batch = {"input_ids": IDS, "labels": IDS}
    task = checkpoint_task(paths["to_base"], [batch], validation=[batch])
    result = port_checkpoint(tmp_path / "out", FineTune(**paths), task, plan=PortPlan(stages=2))
    assert {c.method for c in result.candidates} >= {"identity", "weights", "function"}
    ported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert float(ported(**batch).loss) == pytest.approx(result.loss_after, rel=1e-4)
    assert result.loss_after <= result.loss_identity


def test_a_port_from_files_keeps_no_products(folders, tmp_path, monkeypatch):
    paths, _, groups = folders
    monkeypatch.setattr(Product, "over", None)
    result = port_checkpoint(tmp_path / "out", FineTune(**paths), groups=groups)
    assert result.method == "weights"


def test_tied_heads_stay_tied(tmp_path):
    base, other, groups = reordered(gpt2)
    paths = saved(tmp_path, base=base, other=other)
    tuned = shifted(base)
    tuned.save_pretrained(tmp_path / "tuned")
    expected = logits(tuned)
    port_checkpoint(tmp_path / "out", FineTune(**paths), groups=groups)
    ported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(ported), expected, atol=1e-5)
    # A pickled file lists the head beside the embedding.
    pickle = {**load_file(tmp_path / "base" / "model.safetensors")}
    pickle["lm_head.weight"] = pickle["transformer.wte.weight"]
    torch.save(pickle, tmp_path / "base" / "pytorch_model.bin")
    (tmp_path / "base" / "model.safetensors").unlink()
    swapped = {**paths, "to_base": tmp_path / "base"}
    port_checkpoint(tmp_path / "again", FineTune(**swapped), groups=groups)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert torch.equal(again["lm_head.weight"], again["transformer.wte.weight"])


# adapters


def adapted(build, folder, **options):
    """A base with a trained adapter, its twin in another order, their folders, and the logits."""
    base, other, groups = reordered(build)
    paths = saved(folder, base=base, other=other)
    torch.manual_seed(1)
    tuned = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=5, **options))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    tuned.save_pretrained(folder / "tuned")
    return paths, logits(tuned.eval()), groups


ADAPTERS = {
    "llama": (llama, {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]}),
    "rslora with patterns": (
        llama,
        {
            "target_modules": ["v_proj", "up_proj"],
            "use_rslora": True,
            "rank_pattern": {"up_proj": 2},
            "alpha_pattern": {"layers.0.self_attn.v_proj": 9},
        },
    ),
    "embedding and whole head": (
        llama,
        {"target_modules": ["embed_tokens", "gate_proj"], "modules_to_save": ["lm_head"]},
    ),
    "gpt2": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_becomes_one_of_the_other_base(name, tmp_path):
    build, options = ADAPTERS[name]
    paths, expected, groups = adapted(build, tmp_path, **options)
    result = port_checkpoint(tmp_path / "out", FineTune(**paths), groups=groups)
    assert result.method == "weights"
    other = transformers.AutoModelForCausalLM.from_pretrained(paths["to_base"])
    ported = peft.PeftModel.from_pretrained(other, tmp_path / "out")
    assert torch.allclose(logits(ported.eval()), expected, atol=1e-5)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(paths["to_base"])
    before = load_file(tmp_path / "tuned" / "adapter_model.safetensors")
    after = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {n: v.shape for n, v in before.items()} == {n: v.shape for n, v in after.items()}


def test_an_adapter_of_signed_steps_is_what_its_rank_can_hold(tmp_path):
    paths, *_ = adapted(llama, tmp_path, target_modules=["q_proj", "down_proj"])
    batch = {"input_ids": IDS, "labels": IDS}
    result = port_checkpoint(
        tmp_path / "out", FineTune(**paths),
        checkpoint_task(paths["to_base"], [batch], validation=[batch]),
        plan=PortPlan("weights-mask", stages=1, strengths=(1.0,)),
    )  # fmt: skip
    assert all(0 < layer.kept < 1 for layer in result.layers)
    assert len(result.layers) == 4
    other = transformers.AutoModelForCausalLM.from_pretrained(paths["to_base"])
    ported = peft.PeftModel.from_pretrained(other, tmp_path / "out").eval()
    with torch.no_grad():
        assert float(ported(**batch).loss) == pytest.approx(result.loss_after, rel=1e-4)


def test_an_adapter_whose_targets_are_missing_is_refused(tmp_path):
    paths, *_ = adapted(llama, tmp_path, target_modules=["down_proj"])
    gpt2(0).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match=r"adapts model.layers.0.mlp.down_proj.*to_base .* lacks"):
        port_checkpoint(tmp_path / "out", FineTune(**{**paths, "to_base": tmp_path / "gpt2"}))
    assert not (tmp_path / "out").exists()


# bad input


def test_nothing_is_overwritten_and_nothing_is_left_behind(folders, tmp_path):
    paths, *_ = folders
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="out exists already"):
        port_checkpoint(tmp_path / "out", FineTune(**paths))

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        port_checkpoint(
            tmp_path / "new", FineTune(**paths), plan=PortPlan("identity"), progress=interrupt
        )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_missing_weights_and_shards_are_named(folders, tmp_path):
    paths, *_ = folders
    with pytest.raises(FileNotFoundError, match=r"from_base .*nowhere does not exist"):
        port_checkpoint(tmp_path / "out", FineTune(**{**paths, "from_base": tmp_path / "nowhere"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"fine_tuned .*empty holds no weights"):
        port_checkpoint(tmp_path / "out", FineTune(**{**paths, "fine_tuned": tmp_path / "empty"}))
    shutil.copytree(paths["to_base"], tmp_path / "torn")
    (tmp_path / "torn" / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00001-of-00002.* is missing"):
        port_checkpoint(tmp_path / "out", FineTune(**{**paths, "to_base": tmp_path / "torn"}))


def test_quantised_weights_are_refused(folders, tmp_path):
    paths, *_ = folders
    save_file({"w.weight": torch.zeros(2, 2, dtype=torch.int8)}, tmp_path / "int8.safetensors")
    with pytest.raises(ValueError, match=r"'w.weight' is \(2, 2\) int8.*dequantize\(\)"):
        port_checkpoint(
            tmp_path / "out", FineTune(**{**paths, "from_base": tmp_path / "int8.safetensors"})
        )
    shutil.copytree(paths["to_base"], tmp_path / "said")
    config = json.loads((tmp_path / "said" / "config.json").read_text())
    (tmp_path / "said" / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq"}})
    )
    with pytest.raises(ValueError, match=r"to_base .*is quantised"):
        port_checkpoint(tmp_path / "out", FineTune(**{**paths, "to_base": tmp_path / "said"}))


# what labels alone give


@pytest.mark.parametrize("method", ["untouched", "few-shot"])
def test_an_adapter_that_ignores_the_fine_tune_is_one_of_the_other_base(method, tmp_path):
    paths, *_ = adapted(llama, tmp_path, target_modules=["q_proj", "down_proj"])
    batch = {"input_ids": IDS, "labels": IDS}
    result = port_checkpoint(
        tmp_path / "out", FineTune(**paths),
        checkpoint_task(paths["to_base"], [batch], validation=[batch]),
        plan=PortPlan(method, stages=1, rates=(0.01,)),
    )  # fmt: skip
    assert len(result.layers) == 4
    other = transformers.AutoModelForCausalLM.from_pretrained(paths["to_base"])
    ported = peft.PeftModel.from_pretrained(other, tmp_path / "out").eval()
    with torch.no_grad():
        assert float(ported(**batch).loss) == pytest.approx(result.loss_after, rel=1e-4)
    assert (result.loss_after < result.loss_before) == (method == "few-shot")


def test_a_model_that_cannot_be_built_is_reported(folders, tmp_path, monkeypatch):
    def broken(*_):
        raise ModuleNotFoundError("no module named 'modeling'")

    paths, *_ = folders
    monkeypatch.setattr("slipstream.porting.checkpoints.load_pretrained", broken)
    result = port_checkpoint(tmp_path / "out", FineTune(**paths))
    assert result.method == "identity"
    assert any("cannot be built: no module named 'modeling'" in w for w in result.warnings)
    assert "neurons cannot be matched" in result.reason
