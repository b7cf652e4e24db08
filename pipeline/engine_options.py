"""What the verbs of `slidestream engine` have in common: options, and what these stand for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Config, load_config

if TYPE_CHECKING:
    from engines.cache import EngineCache


def add_common(parser: argparse.ArgumentParser, configuration: bool = True) -> None:
    """The folder of engines and, where the verb has use for one, the configuration."""
    parser.add_argument(
        "--engines", dest="folder", type=Path, metavar="DIR", help="folder of engines (default: the user's cache)"
    )
    if configuration:
        parser.add_argument("--config", type=Path, metavar="FILE", help="configuration")
        parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one value")


def add_trial(parser: argparse.ArgumentParser) -> None:
    """What an engine is verified on, and how closely it must agree."""
    parser.add_argument(
        "--verify-on", nargs="+", type=Path, default=[], metavar="SLIDE",
        help="slides or folders: tissue to verify with (build: default is that of --calibrate)",
    )  # fmt: skip
    parser.add_argument("--labelled", type=Path, metavar="DIR", help="a folder of pictures for each label")
    parser.add_argument("--positive", metavar="NAME", help="the label of the last class (default: its name)")
    parser.add_argument("--patches", type=int, default=512, metavar="N", help="patches to verify with (default: 512)")
    parser.add_argument(
        "--bound", type=float, default=0.005, metavar="X", help="largest loss (default: 0.005 = 0.5 %%)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of patches (default: 0)")


def cache_of(args: argparse.Namespace) -> EngineCache:
    from engines.cache import EngineCache

    return EngineCache(args.folder)


def config_of(args: argparse.Namespace) -> Config:
    """Raises ConfigError."""
    return load_config(args.config, args.set)


def tell(line: str) -> None:
    """To the person: standard output is for what was asked for."""
    print(line, file=sys.stderr, flush=True)
