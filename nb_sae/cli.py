"""The command `nb-sae`: demo, collect, train, report, doctor."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nb_sae import __version__
from nb_sae.errors import InputNotFoundError, NbSaeError

if TYPE_CHECKING:
    from nb_sae.reporting.report import Report

_NOTEBOOKS = {
    "01": "01_interpret_clip.ipynb",
    "02": "02_interpret_language_model.ipynb",
    "03": "03_concepts_and_steering.ipynb",
    "04": "04_concept_bias_celeba.ipynb",
    "05": "05_feature_flow_clip.ipynb",
    "06": "06_feature_flow_language_model.ipynb",
    "07": "07_train_and_compare.ipynb",
}
_QUICK = {"N_INPUTS": 600, "TRAIN_ROWS": 60_000}
"""A first look: enough to see that everything works, too little to trust a latent."""
_EXIT_FAILED, _EXIT_REFUSED, _EXIT_INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0: done. 1: a notebook failed (its report was written) or the doctor found a problem. 2: refused, with a
        message that says why. 130: interrupted.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except NbSaeError as error:
        print(f"nb-sae: {error}", file=sys.stderr)
        return _EXIT_REFUSED
    except KeyboardInterrupt:
        print("nb-sae: interrupted", file=sys.stderr)
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away; Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nb-sae", description="Interpret CLIP and language models in a notebook.")
    parser.add_argument("--version", action="version", version=f"nb_sae {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="demo | collect | train | report | doctor")
    _add_demo(commands)
    _add_collect(commands)
    _add_train(commands)
    _add_report(commands)
    doctor = commands.add_parser("doctor", help="show versions, devices and what to do about each problem")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="execute the tutorial notebook and write it as a report",
        description="Execute the tutorial notebook, on the embedded model and data or on your own, "
        "and write it as one HTML file and an executed notebook.",
    )
    demo.add_argument(
        "--notebook",
        choices=sorted(_NOTEBOOKS),
        default="01",
        help="01: CLIP, 02: language model, 03: concepts, 04: bias, 05 and 06: flow, 07: training",
    )
    demo.add_argument(
        "--model", metavar="NAME", help="an open_clip name, hf-hub: name or local checkpoint; or a causal LM"
    )
    demo.add_argument("--pretrained", metavar="TAG", help="open_clip's tag of the weights")
    demo.add_argument("--images", metavar="FOLDER", type=Path, help="a folder of images, or CelebA's folder")
    demo.add_argument("--inputs", metavar="N", type=_positive, help="how many inputs to use")
    demo.add_argument("--rows", metavar="N", type=_positive, help="how many rows to train on, repeats counted")
    demo.add_argument("--quick", action="store_true", help="a first look: few inputs, little training")
    demo.add_argument(
        "--out", metavar="FOLDER", type=Path, default=Path("reports"), help="where it is written: reports"
    )
    _add_looks(demo)
    demo.set_defaults(run=_demo)


def _add_collect(commands: Any) -> None:
    collect = commands.add_parser(
        "collect",
        help="run a model over images or texts and store the activations of a site",
        description="Run a model over images or texts once and store the rows of one site. Called again, it goes on "
        "where it stopped. Under torchrun every process collects its share.",
    )
    inputs = collect.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--images", metavar="FOLDER", type=Path, help="a folder of images, for a CLIP")
    inputs.add_argument("--texts", metavar="FILE", type=Path, help="a text file, one text a line, for a language model")
    collect.add_argument("--model", metavar="NAME", default="demo", help="as for load_clip or load_lm: demo")
    collect.add_argument("--pretrained", metavar="TAG", help="open_clip's tag of the weights")
    collect.add_argument("--site", required=True, help="a name from model.hook_names()")
    collect.add_argument("--out", metavar="PATH", required=True, help="folder of the store, or an address for fsspec")
    collect.add_argument("--tokens", choices=("all", "cls", "patches"), default="all", help="which rows of an input")
    collect.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16", help="on disk")
    collect.add_argument("--context-tokens", metavar="N", type=_positive, help="length of a context of texts")
    collect.add_argument("--device", help="a GPU if there is one")
    collect.set_defaults(run=_collect)


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train a dictionary as a TOML file says",
        description="Train as a TOML file says, by the same code as in a notebook. Ctrl-C saves and stops. Under "
        "torchrun every process trains on its share.",
    )
    train.add_argument("file", type=Path, help="sections [store], [sae], [train], [output]")
    train.add_argument("--resume", action="store_true", help="go on from what is saved there; begin if nothing is")
    train.add_argument("--device", help="a GPU if there is one")
    train.add_argument(
        "--latent-shares", metavar="N", type=_positive, default=1, help="split the dictionary over N processes"
    )
    train.add_argument("--quiet", action="store_true", help="print nothing but errors")
    train.set_defaults(run=_train)


def _add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="write a notebook as one HTML file that needs no network")
    report.add_argument("notebook", type=Path)
    report.add_argument(
        "-o", "--out", metavar="FILE", type=Path, help="the HTML file; beside the notebook if not given"
    )
    report.add_argument("--execute", action="store_true", help="run the notebook first, in this Python")
    report.add_argument("--title", help="instead of the notebook's first heading")
    report.add_argument("--pdf", action="store_true", help="print it to a PDF, too; needs Chromium, Chrome or Edge")
    report.add_argument("--no-overwrite", action="store_true", help="refuse if the file exists")
    _add_looks(report)
    report.set_defaults(run=_report)


def _add_looks(parser: argparse.ArgumentParser) -> None:
    images = parser.add_mutually_exclusive_group()
    images.add_argument("--blur-images", dest="pictures", action="store_const", const="blur", help="blur every picture")
    images.add_argument("--no-images", dest="pictures", action="store_const", const="remove", help="grey boxes instead")
    parser.add_argument("--code", choices=("show", "fold", "hide"), default="show", help="how code cells appear")
    parser.set_defaults(pictures="keep")


def _demo(arguments: argparse.Namespace) -> int:
    from nb_sae.reporting.report import make_report
    from nb_sae.reporting.run import print_steps

    name = _NOTEBOOKS[arguments.notebook]
    if arguments.images is not None and not arguments.images.is_dir():
        raise InputNotFoundError(f"--images {arguments.images} is not a folder. Give a folder of images, or CelebA's.")
    folder = arguments.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    parameters = _demo_parameters(arguments, runs=folder / "runs")
    shown = ", ".join(f"{key}={value!r}" for key, value in parameters.items() if key != "RUNS")
    print(f"Executing {name}{' with ' + shown if shown else ''}", flush=True)
    made = make_report(
        _shipped_notebook(name),
        folder / Path(name).with_suffix(".html").name,
        run=True,
        parameters=parameters,
        folder=folder,
        images=arguments.pictures,
        code=arguments.code,
        on_step=print_steps,
    )
    return _tell(made)


def _demo_parameters(arguments: argparse.Namespace, *, runs: Path) -> dict[str, Any]:
    """Values for the notebook's cell tagged `parameters`; only what was asked for."""
    given = {
        "MODEL": arguments.model,
        "PRETRAINED": arguments.pretrained,
        "IMAGES": str(arguments.images.resolve()) if arguments.images is not None else None,
        "N_INPUTS": arguments.inputs,
        "TRAIN_ROWS": arguments.rows,
    }
    given = {key: value for key, value in given.items() if value is not None}
    given = {**(_QUICK if arguments.quick else {}), **given}
    # A store is resumed where it lies; another model or other inputs get a folder of their own.
    parts = [arguments.notebook, *(str(value) for key, value in sorted(given.items()) if key != "TRAIN_ROWS")]
    words = "-".join(map(_file_part, parts))
    return {**given, "RUNS": str(runs / words)}


def _file_part(text: str) -> str:
    """A short name for a setting, good in a file name; two folders of one name differ."""
    name = "".join(letter if letter.isalnum() or letter in "._" else "_" for letter in Path(text).name)[:60]
    return name if name == text or "/" not in text else f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _shipped_notebook(name: str) -> Path:
    """The tutorial notebook: inside the installed package, or beside it in a checkout.

    Raises:
        InputNotFoundError: It is in neither place.
    """
    package = Path(str(files("nb_sae")))
    places = (package / "assets" / "notebooks" / name, package.parent / "notebooks" / name)
    for path in places:
        if path.is_file():
            return path
    raise InputNotFoundError(f"The notebook {name} is missing from this installation. Reinstall nb_sae.")


def _collect(arguments: argparse.Namespace) -> int:
    import nb_sae as ns

    if arguments.images is not None:
        model = ns.load_clip(arguments.model, pretrained=arguments.pretrained, device=arguments.device)
        inputs: Any = ns.images(arguments.images)
    else:
        model = ns.load_lm(arguments.model, device=arguments.device)
        try:
            lines = arguments.texts.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise InputNotFoundError(f"--texts {arguments.texts} cannot be read ({error}).") from error
        inputs = ns.texts([line for line in lines if line], context_tokens=arguments.context_tokens)
    store = ns.ActivationStore.collect(
        model, inputs, site=arguments.site, path=arguments.out, tokens=arguments.tokens, dtype=arguments.dtype
    )
    print(store)
    return 0


def _train(arguments: argparse.Namespace) -> int:
    import signal

    from nb_sae.train_file import train_from_file

    # What a cluster sends before it takes a machine away is a stop button too.
    previous = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        session = train_from_file(
            arguments.file, resume=arguments.resume, device=arguments.device, latent_shares=arguments.latent_shares,
            progress=not arguments.quiet,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGTERM, previous)
    if session.stopped_early and session.group.is_main:
        print(f"nb-sae: interrupted and saved. Go on with: nb-sae train --resume {arguments.file}", file=sys.stderr)
    return _EXIT_INTERRUPTED if session.stopped_early else 0


def _report(arguments: argparse.Namespace) -> int:
    from nb_sae.reporting.report import make_report
    from nb_sae.reporting.run import print_steps

    made = make_report(
        arguments.notebook,
        arguments.out,
        run=arguments.execute,
        images=arguments.pictures,
        code=arguments.code,
        title=arguments.title,
        pdf=arguments.pdf,
        overwrite=not arguments.no_overwrite,
        on_step=print_steps,
    )
    return _tell(made)


def _tell(made: Report) -> int:
    """Say where the files lie and how it went."""
    print(f"Report    {_near(made.html)}  ({made.html.stat().st_size / 1e6:.1f} MB)")
    print(f"Notebook  {_near(made.notebook)}  ({made.notebook.stat().st_size / 1e6:.1f} MB)")
    if made.cut:
        print(f"          {' '.join(made.cut)}")
    if made.pdf is not None:
        print(f"PDF       {_near(made.pdf)}  ({made.pdf.stat().st_size / 1e6:.1f} MB)")
    print(f"Time      {_duration(made.seconds)}", flush=True)
    if made.stop is None:
        return 0
    cell = made.stop.cell + 1
    said = (
        f"interrupted in cell {cell}"
        if made.stop.interrupted
        else f"cell {cell} failed: {made.stop.reason.rstrip('.')}"
    )
    print(f"nb-sae: {said}. The report shows what ran before.", file=sys.stderr)
    return _EXIT_INTERRUPTED if made.stop.interrupted else _EXIT_FAILED


def _near(path: Path) -> str:
    """The path from here where it lies below, else whole."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else time.strftime("%M min %S s", time.gmtime(seconds)).lstrip("0")


def _doctor(arguments: argparse.Namespace) -> int:
    del arguments
    from nb_sae.diagnosis import doctor

    diagnosis = doctor()
    print(diagnosis)
    return _EXIT_FAILED if diagnosis.problems else 0


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
