import builtins
import json
import sys

import pytest

from commands import slipstream

QUICK = ("--rounds", "2", "--clients", "2", "--width", "4")


def federate(*arguments, code=0):
    return slipstream("federate", *arguments, code=code)


def test_methods_are_compared_on_splits():
    chosen = ("--method", "fedavg", "--method", "8-bit", "--partition", "iid", "--partition", "0.3")
    found = json.loads(federate("demo", *QUICK, *chosen, "--json").stdout)
    assert [(one["split"], one["method"]) for one in found] == [
        ("iid", "fedavg"),
        ("iid", "8-bit"),
        ("0.3", "fedavg"),
        ("0.3", "8-bit"),
    ]
    assert [one["relative_bytes"] == 1 for one in found] == [True, False, True, False]
    assert found[0]["bytes_up"] == 2 * 2 * 4 * (64 * 4 + 4 + 4 * 4 + 4 + 4 * 10 + 10)
    table = federate("demo", *QUICK, *chosen).stdout
    assert f"{found[1]['test']['accuracy']:.4f}" in table
    assert f"{found[1]['relative_bytes']:.1%}" in table


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "best"], "There is no method 'best'; there are fedavg, apf, top-k"),
        (["--failing", "1.5"], "failing must be at least 0 and below 1, got 1.5"),
        (["--partition", "odd"], "split must be iid or a number such as 0.3, got 'odd'"),
        (["--partition", "-1"], "alpha must be above 0"),
        (["--data", "cats"], "data must be digits, mnist:DIR or cifar10:DIR, got 'cats'"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, words):
    assert words in federate("demo", *QUICK, *arguments, code=2).stderr


def test_without_flower_the_install_line_is_told(monkeypatch):
    imported = builtins.__import__

    def without(name, *arguments, **named):
        if name.startswith("flwr"):
            raise ModuleNotFoundError("No module named 'flwr'")
        return imported(name, *arguments, **named)

    for name in [n for n in sys.modules if n.startswith("slipstream.federated")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    told = federate("demo", *QUICK, code=2).stderr
    assert 'pip install "slipstream[federated]"' in told
