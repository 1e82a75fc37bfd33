"""The command line: `python -m engine ...`."""

from engine.cli.main import main
from engine.system import code_version  # noqa: F401 - computes the digest of the code that is imported

if __name__ == "__main__":  # False when the fork server imports this module under another name
    raise SystemExit(main())
