"""Names of packages are there without their modules being loaded first."""

import subprocess
import sys

QUICK = """
import sys
import slipstream.dynamics.tangent_kernel
from slipstream.dynamics import TangentKernel, tangent_kernel
from slipstream import dynamics, trajectory
assert callable(tangent_kernel) and dynamics.tangent_kernel is tangent_kernel
assert dynamics.TangentKernel is TangentKernel
assert sorted(name for name in trajectory.__all__ if not hasattr(trajectory, name)) == []
try:
    trajectory.nothing
except AttributeError as error:
    assert "no attribute 'nothing'" in str(error)
else:
    raise AssertionError
"""
LIGHT = """
import sys
from slipstream.cli.app import app
import typer.main
from slipstream.trajectory import check_run, read_run
typer.main.get_command(app)
assert not {"torch", "numpy", "matplotlib"} & sys.modules.keys(), sorted(sys.modules)
"""


def test_a_function_comes_before_the_module_of_the_same_name():
    subprocess.run([sys.executable, "-c", QUICK], check=True)


def test_help_and_reading_json_load_no_torch():
    subprocess.run([sys.executable, "-c", LIGHT], check=True)
