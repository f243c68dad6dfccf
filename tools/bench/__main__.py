"""The command python -m microcnn.tools.bench: each subcommand is the module of that name, loaded when asked for."""
from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "models": "write the architectures of the benchmark as ONNX",
    "peers": "time this library and whatever else is installed, on the same networks with the same weights",
    "kernels": "what each kernel of a model reaches: GFLOP/s, GB/s, share of this machine's peak",
    "features": "what training the last layer from cached features saves",
    "startup": "how long a process takes from its start to its first result",
}


def usage() -> str:
    """What --help prints."""
    lines = ["usage: python -m microcnn.tools.bench COMMAND ...", "", "Measurements that anyone can repeat.", "", "commands:"]
    lines += [f"  {name:9} {text}" for name, text in COMMANDS.items()]
    return "\n".join([*lines, "", "python -m microcnn.tools.bench COMMAND --help says more."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand. Returns what it returns; 2 for bad input, 130 after Ctrl-C, 141 where nobody reads the output."""
    from microcnn.errors import MicroCNNError
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(usage())
        return 0
    try:
        if given[0] not in COMMANDS:
            raise MicroCNNError(f"there is no command {given[0]!r}; expected one of {', '.join(COMMANDS)}")
        code = importlib.import_module(f".{given[0]}", __package__).main(given[1:])
        sys.stdout.flush()
        return int(code or 0)
    except SystemExit as stop:      # argparse, after --help or an error
        return stop.code if isinstance(stop.code, int) else 2
    except MicroCNNError as error:
        print(f"bench: error: {'; '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the interpreter would complain when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
