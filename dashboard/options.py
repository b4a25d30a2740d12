"""What the command line says: `streamlit run dashboard/streamlit_app.py -- --api-url http://...`."""

import argparse
import sys
from functools import lru_cache

DEFAULT_API_URL = "http://127.0.0.1:8000"


@lru_cache
def api_url() -> str:
    """Root of the API that this dashboard shows."""
    parser = argparse.ArgumentParser(prog="dashboard", description="FedBraid in the browser.")
    parser.add_argument("--api-url", default=DEFAULT_API_URL, help="root of the FedBraid API")
    known, _ = parser.parse_known_args(sys.argv[1:])
    return str(known.api_url)
