"""Serves an exported model over HTTP."""

from pathlib import Path

from nasrec_torchrec.cli import run
from nasrec_torchrec.inference.config import ServingConfig
from nasrec_torchrec.inference.server import serve


def main(package: Path, config: ServingConfig) -> None:
    """Serves by the Open Inference Protocol until SIGTERM, then answers what it has accepted.

    /v2/models/NAME describes the model, /v2/models/NAME/infer scores, /docs shows the API, /metrics is for Prometheus.
    A new package in the same folder is verified and then takes the traffic.

    Args:
        package: folder that apps.export wrote; a remote one is fetched once, at the start.
    """
    serve(package, config)


if __name__ == "__main__":
    run(main)
