"""`slipstream port`."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from slipstream.cli import options
from slipstream.cli.output import write_json
from slipstream.cli.progress import steps_bar
