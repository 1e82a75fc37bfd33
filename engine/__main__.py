"""`python -m engine …`"""

from engine.cli.main import main
from engine.system import code_version  # noqa: F401 - first: it notes which code the imports after it load

if __name__ == "__main__":  # the fork server imports the main module under another name
    raise SystemExit(main())
