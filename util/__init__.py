"""What models, data sets and the driver share."""

import sys

if not (3, 10) <= sys.version_info < (3, 13):  # before anything that another Python may lack
    sys.exit(
        f"error: this is Python {sys.version.split()[0]} ({sys.executable}), and this program runs "
        "with 3.10, 3.11 and 3.12: make an environment with one of these"
    )
