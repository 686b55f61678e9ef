"""Counts the files of the package that one answer without the language model runs through, from the command line on.

    python scripts/count_files.py RUN --user ID

A file counts as run through when a function of it is called, and as loaded when it is imported.
"""

import inspect
import sys
import threading
from pathlib import Path

import allrec
from allrec.cli.commands import main as program

PACKAGE = str(Path(allrec.__file__).parent)


def main() -> None:
    """Recommends under a profiler that notes the file of every call."""
    called: set[str] = set()

    def note(frame, event, argument):  # type: ignore[no-untyped-def]
        code = frame.f_code
        # The bodies of modules and classes, which run when they are imported, are not optimised.
        is_function = code.co_flags & inspect.CO_OPTIMIZED
        if event == "call" and is_function and code.co_filename.startswith(PACKAGE):
            called.add(code.co_filename)

    run, *rest = sys.argv[1:]
    sys.argv = ["allrec", "recommend", run, *rest, "--no-llm"]
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        program()
    except SystemExit as ended:
        if ended.code:
            raise
    finally:
        sys.setprofile(None)
    loaded = {
        module.__file__ for name, module in sys.modules.items()
        if name.partition(".")[0] == "allrec" and getattr(module, "__file__", None)
    }  # fmt: skip
    for title, files in (("run through", called), ("loaded", loaded)):
        sys.stdout.write(f"{title}: {len(files)}\n")
    for path in sorted(called):
        sys.stdout.write(f"  {Path(path).relative_to(PACKAGE)}\n")


if __name__ == "__main__":
    main()
