"""The command line.

Exit codes: 0 every slide is complete, 1 some slide failed or is partial, 2 usage or configuration, 70 a fault,
75 interrupted (the same command goes on where it stopped).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from engines.errors import EngineError, ModelError
from pipeline import __version__, control_command, engine_command, model_command, tune_command
from pipeline.config import Config, ConfigError, load_config
from pipeline.memory import MemoryLack
from pipeline.service import command as service_command
from pipeline.worker import EXIT_CONFIGURATION, EXIT_FAULT
from review import command as review_command
from review import user_command
from slides.errors import SlideError

EXIT_CODES = """\
exit codes:
  0   every slide is complete
  1   at least one slide failed or is partial; the others are done
  2   usage or configuration
  70  a fault of slidestream or of the machine
  75  interrupted; the same command goes on where it stopped
"""

DESCRIPTION = """\
Run cancer-detection models over whole-slide images: slides in, heatmaps out.

  slidestream demo                          see it work on a synthetic slide
  slidestream run SLIDES/ --out RESULTS/    run a model over a folder of slides
  slidestream check                         what it would use on this machine
  slidestream tune SLIDES/                  measure this machine and propose a configuration
  slidestream serve --config FILE           as a service: slides as they come off the scanner
  slidestream engine build MODEL            an engine for this machine's GPU
  slidestream review --results RESULTS/     look at results, judge and sign them
"""

RUN_EPILOG = f"""\
examples:
  slidestream run slide.svs --out results
  slidestream run /slides/monday --out results --model models/my-model
  slidestream run /slides --out results --config configs/cpu.yaml --set slides.mpp=0.25

Run the same command again to go on after an interruption, or to add new slides: what is complete is skipped.
Ctrl-C once finishes what is under way, twice stops at once.

{EXIT_CODES}"""


def main(arguments: list[str] | None = None) -> int:
    """The exit code."""
    _have_standard_streams()
    words = sys.argv[1:] if arguments is None else arguments
    if problem := _empty(words):
        return _complain(problem, EXIT_CONFIGURATION)
    parser = _parser(words)
    args = parser.parse_args(words)
    if args.command is None:
        parser.print_help()
        return EXIT_CONFIGURATION
    return _flushed(explained(lambda: args.command(args)))


def explained(command: Callable[[], int]) -> int:
    """The exit code of `command`; what it raises becomes one line on standard error."""
    try:
        return command()
    except (ConfigError, EngineError, ModelError, SlideError, MemoryLack) as error:
        lost = isinstance(error, EngineError) and error.fatal  # a GPU, which is no matter of what was asked for
        return _complain(str(error), EXIT_FAULT if lost else EXIT_CONFIGURATION)
    except KeyboardInterrupt:
        return _complain("interrupted before anything was under way", 75)
    except BrokenPipeError:
        return EXIT_FAULT
    except OSError as error:
        if not _have_folder():
            return _complain("the current folder is gone; change to another one", EXIT_CONFIGURATION)
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}", EXIT_FAULT)
    except Exception as error:  # noqa: BLE001 (without this, Python would leave with 1: "a slide failed")
        traceback.print_exc()
        return _complain(f"a fault of slidestream: {type(error).__name__}: {error}", EXIT_FAULT)


def _complain(problem: str, code: int) -> int:
    with contextlib.suppress(OSError):  # nobody hears it; the exit code still tells
        print(f"slidestream: {problem}", file=sys.stderr)
    return code


def _empty(words: Sequence[str]) -> str:
    """What is wrong with an empty word, which as a path would be the current folder; "" where there is none."""
    for i, word in enumerate(words):
        if not word or re.fullmatch(r"--[a-z-]+=", word):
            before = word or (words[i - 1] if i else "slidestream")
            return f"the argument after {before} is empty; is it a shell variable that is not set?"
    return ""


def _have_standard_streams() -> None:
    """Where one was closed (`2>&-`), the next file to be opened would be it, and have what is printed written into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)
            if null > 2:
                os.close(null)
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115


def _have_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _flushed(code: int) -> int:
    """`code`, with all that was printed where it belongs; otherwise Python would find at its end that it cannot, and leave
    with a code of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is sys.stdout:
                code = code or _complain(f"standard output: {error.strerror}", EXIT_FAULT)
    return code


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """`words`: the command line. Options whose code a run would only lose time with are there if they are asked for."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("slidestream", description=DESCRIPTION, epilog=EXIT_CODES, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"slidestream {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")

    run = commands.add_parser(
        "run",
        help="run a model over slides",
        description="Run a model over slides.",
        epilog=RUN_EPILOG,
        formatter_class=raw,
    )
    run.add_argument(
        "inputs", nargs="+", type=Path, metavar="INPUT", help="a slide, or a folder that is searched for slides"
    )
    run.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the results (made if need be)")
    _add_configuration(run)
    _add_progress(run)
    run.set_defaults(command=_run)

    demo = commands.add_parser(
        "demo",
        help="see it work on a synthetic slide",
        description="Make a synthetic slide whose tumour is known, run the demonstration model on it, and compare.",
        formatter_class=raw,
    )
    demo.add_argument("--out", type=Path, default=Path("demo-out"), metavar="DIR", help="folder (default: %(default)s)")
    _add_configuration(demo)
    _add_progress(demo)
    demo.set_defaults(command=_demo)

    slide = commands.add_parser(
        "make-slide",
        help="make a synthetic slide with a known truth",
        description="Make a synthetic slide (pyramidal, JPEG-tiled TIFF) and, beside it, where its tumour is.",
        formatter_class=raw,
    )
    slide.add_argument("file", type=Path, metavar="OUT.tif")
    if "make-slide" in words:
        _add_slide_options(slide)
    slide.set_defaults(command=_make_slide)

    control_command.add_parser(commands)
    service_command.add_parser(commands)
    tune_command.add_parser(commands)
    engine_command.add_parser(commands)
    model_command.add_parser(commands)
    review_command.add_parser(commands)
    user_command.add_parser(commands)

    bench = commands.add_parser(
        "bench", help="measure this machine", description="Measure this machine.", formatter_class=raw
    )
    benches = bench.add_subparsers(metavar="WHAT", title="what", required=True)
    reading = benches.add_parser(
        "read",
        help="how fast a slide can be read",
        description="Patches a second of this slide by OpenSlide and by slidestream's own decoding, on one core and more.",
        formatter_class=raw,
    )
    whole = benches.add_parser(
        "pipeline",
        help="how fast the whole is, and what holds it up",
        description="The whole pipeline against its engine alone, its readers alone, and PyTorch's DataLoader.",
        formatter_class=raw,
    )
    engine = benches.add_parser(
        "engine",
        help="how fast a model runs on this GPU, by each engine and precision",
        description="Latency, images a second, GPU memory and loss of a model by each engine and precision, beside PyTorch.",
        formatter_class=raw,
    )
    if "bench" in words:
        _add_bench_options(reading, whole, engine)
    reading.set_defaults(command=_bench_read)
    whole.set_defaults(command=_bench_pipeline)
    engine.set_defaults(command=_bench_engine)

    check = commands.add_parser(
        "check",
        help="what would be used on this machine, and whether it can",
        description="Print the resolved plan, what each stage will use, the memory bound, and whether this machine can do it.",
        formatter_class=raw,
    )
    check.add_argument("--out", type=Path, metavar="DIR", help="the results folder, to check it too")
    _add_configuration(check)
    check.set_defaults(command=_check)
    return parser


def _add_configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action="append",
        metavar="DIR",
        help="model directory (default: the demonstration model); several times: all run in one pass over a slide",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration (default: as in configs/cpu.yaml)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one value, for example reader.workers=4",
    )


def _add_progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-progress", action="store_true", help="no progress display")


def _add_slide_options(parser: argparse.ArgumentParser) -> None:
    from slides.synthetic import add_arguments

    add_arguments(parser)


def _add_bench_options(
    reading: argparse.ArgumentParser, whole: argparse.ArgumentParser, engine: argparse.ArgumentParser
) -> None:
    from pipeline import engine_bench, pipeline_bench, read_bench

    read_bench.add_arguments(reading)
    pipeline_bench.add_arguments(whole)
    engine_bench.add_arguments(engine)


def _config(args: argparse.Namespace) -> Config:
    config = load_config(args.config, args.set)
    if args.model is None:
        return config
    return config.model_copy(update={"model": args.model[0] if len(args.model) == 1 else tuple(args.model)})


def _run(args: argparse.Namespace) -> int:
    from pipeline.run import Options, run_slides
    from slides.discover import discover

    config = _config(args)
    if any(path.is_dir() and args.out.exists() and path.samefile(args.out) for path in args.inputs):
        raise ConfigError(f"--out {args.out}: is the folder of the slides; name another one, also one in it")
    found, notices = discover(args.inputs, [args.out])
    if not found:
        names = ", ".join(str(path) for path in args.inputs)
        raise ConfigError(f"{names}: no slides found; name a slide or a folder that holds some")
    return run_slides(found, config, Options(args.out, "none" if args.no_progress else "auto"), notices).code


def _demo(args: argparse.Namespace) -> int:
    from pipeline.demo import demo

    return demo(_config(args), args.out, "none" if args.no_progress else "auto")


def _make_slide(args: argparse.Namespace) -> int:
    from pipeline.demo import percent
    from slides.synthetic import from_arguments, make_slide
    from slides.truth import truth_paths

    try:
        settings = from_arguments(args)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if args.file.is_dir():
        raise ConfigError(f"{args.file}: is a folder; name the file to be made, such as {args.file / 'slide.tif'}")
    truth = make_slide(args.file, settings, percent)
    print(
        f"{args.file}: {settings.width} x {settings.height} pixels, {truth.tissue_share:.0%} tissue, "
        f"{truth.tumour_share:.0%} of it tumour"
    )
    for path in truth_paths(args.file):
        print(f"{path}: the truth")
    return 0


def _bench_read(args: argparse.Namespace) -> int:
    from pipeline.read_bench import run

    return run(args)


def _bench_pipeline(args: argparse.Namespace) -> int:
    from pipeline.pipeline_bench import run

    return run(args)


def _bench_engine(args: argparse.Namespace) -> int:
    from pipeline.engine_bench import run

    return run(args)


def _check(args: argparse.Namespace) -> int:
    from pipeline.check import report

    lines, able = report(_config(args), args.out)
    print("\n".join(lines))
    return 0 if able else EXIT_CONFIGURATION


if __name__ == "__main__":
    sys.exit(main())
