"""``peerseal-registry``, also as ``python -m registry``."""

import sys

from peerseal.runtime.extras import missing


def main() -> None:
    """Runs `registry.cli`. Without the extra ``registry`` it prints how to install it and exits with 1."""
    try:
        from registry.cli import main as run
    except ModuleNotFoundError as error:
        sys.exit(f"Error: {missing(error, 'registry')}")
    run()


if __name__ == "__main__":
    main()
