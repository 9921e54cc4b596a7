"""What version 0.1 called otherwise is still found, with a warning that says where it is now."""

import json
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

from slipstream.deprecated import MODULES

# Module of 0.1 to names that have left it, or are called otherwise; to all of its names if the
# module itself has moved.
NAMES = json.loads((Path(__file__).parent / "fixtures" / "names_of_0_1.json").read_text())


@pytest.mark.parametrize("module", NAMES)
def test_old_names_are_found_with_a_warning(module, monkeypatch):
    if module in MODULES:
        monkeypatch.delitem(sys.modules, module, raising=False)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = import_module(module)
        missing = [name for name in NAMES[module] if not hasattr(found, name)]
    told = [str(one.message) for one in warned if one.category is DeprecationWarning]
    assert missing == []
    if module in MODULES:
        assert f"{module} is now {MODULES[module]}." in told
    else:
        unsaid = [n for n in NAMES[module] if not any(f"{module}.{n} is now " in t for t in told)]
        assert unsaid == []


@pytest.mark.parametrize("module", ["slipstream.transfer.ledger", "slipstream.landscape.angles"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_never_was_is_not_found(module):
    with pytest.raises(AttributeError, match="nothing"):
        getattr(import_module(module), "nothing")  # ruff: ignore[get-attr-with-constant]
