"""The command `microcnn`."""
from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from .terminal import Terminal

COMMANDS = {
    "demo": "the main job in small, on what comes along",
    "info": "inputs, outputs, layers and the memory to run or train a model",
    "profile": "what each layer costs on this device",
    "finetune": "adapt a model to data",
    "evaluate": "loss and accuracy on data",
    "predict": "run a model on data",
    "convert": "from .onnx to .mcnn and back",
    "warmup": "compile all kernels that a model needs",
    "doctor": "check this machine and installation",
}
MODULES = {"demo": ".demo", "predict": ".commands.evaluate", "profile": ".commands.profiling"}
EPILOG = """examples:
  microcnn demo
  microcnn info model.onnx --batch 32
  microcnn finetune model.onnx --data mine.npz --train head --out tuned.onnx

data files are .npz with arrays x and y, or x_train, y_train, x_test, y_test"""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, like all errors of this command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"microcnn: error: {message} (see: {self.prog} --help)\n")


def build_parser(only: str | None = None) -> Parser:
    """The parser, with the options of one subcommand."""
    parser = Parser(prog="microcnn", description="Run, fine-tune, profile and export convolutional networks on small "
                    "devices.", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.add_argument("--traceback", action="store_true", help="show where an error comes from")
        if only == name:   # the others cost time to load
            module = importlib.import_module(MODULES.get(name, f".commands.{name}"), __package__)
            getattr(module, "add_" + name)(sub)
            sub.set_defaults(run=getattr(module, "run_" + name))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0, 1 for a check that failed, 2 for bad input, 3 for a bug, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "--traceback" in given
    try:
        only = next((word for word in given if word in COMMANDS), None)
        parser = build_parser(only)
        args = parser.parse_args(given)
        if args.version:
            import microcnn as mc
            print(f"microcnn {mc.__version__}")
            return 0
        if args.command is None:
            parser.print_help()
            return 0
        code = args.run(args, Terminal())
        sys.stdout.flush()
        return int(code or 0)
    except SystemExit as stop:   # argparse, after --help or an error
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except BrokenPipeError:
        # whoever read our output has seen enough; the interpreter would complain when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        return _failed(error, verbose)


def _failed(error: Exception, verbose: bool) -> int:
    from microcnn.errors import MicroCNNError
    if verbose:
        traceback.print_exc()
    if isinstance(error, MicroCNNError):
        from .commands.options import as_options
        _complain(f"error: {as_options(str(error))}")
    elif isinstance(error, MemoryError):
        _complain(f"error: not enough memory ({error})" if str(error) else "error: not enough memory")
    elif isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        _complain(f"error: {name}{error.strerror or error}")
    else:
        _complain(f"error: {type(error).__name__}: {error}; this is a bug in microcnn"
                  + ("" if verbose else ", please report it with what --traceback shows"))
        return 3
    return 2


def _complain(message: str) -> None:
    """One line on standard error, however many the message has."""
    try:
        line = "; ".join(line.strip() for line in message.splitlines() if line.strip()).replace(":; ", ": ")
        print("microcnn: " + line, file=sys.stderr, flush=True)
    except OSError:
        pass


if __name__ == "__main__":
    sys.exit(main())
