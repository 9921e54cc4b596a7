import subprocess
import sys

import pytest

import slipstream

# What type checkers see, which has no other public form.
from slipstream.lazy_names import _listed


def test_every_public_name_is_there_and_there_are_few():
    assert sorted(_listed(slipstream.__file__)) == sorted(slipstream.__all__)
    assert len(slipstream.__all__) <= 30
    for name in slipstream.__all__:
        assert getattr(slipstream, name).__name__ == name


def test_importing_the_package_loads_nothing_heavy():
    code = "import slipstream, sys; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_told():
    with pytest.raises(AttributeError, match=r"no public name 'Recoder'; it has .*Recorder"):
        slipstream.Recoder  # ruff: ignore[useless-expression]
