"""Serves an exported model over HTTP."""

import threading
from pathlib import Path
from types import FrameType

import uvicorn

from nasrec_torchrec.cli import run
from nasrec_torchrec.inference.config import ServingConfig
from nasrec_torchrec.inference.server import create_app
from nasrec_torchrec.runs.files import local_folder


class _Server(uvicorn.Server):
    """Lets clients and load balancers know before it closes its door."""

    def __init__(self, config: uvicorn.Config, notice_s: float) -> None:
        super().__init__(config)
        self._notice_s = notice_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        state = self.config.app.state  # type: ignore[union-attr]
        if state.draining:  # asked twice: at once
            super().handle_exit(sig, frame)
        state.draining = True
        timer = threading.Timer(self._notice_s, super().handle_exit, (sig, frame))
        timer.daemon = True
        timer.start()


def main(package: Path, config: ServingConfig) -> None:
    """Serves by the Open Inference Protocol until SIGTERM, then answers what it has accepted.

    /v2/models/NAME describes the model, /v2/models/NAME/infer scores, /docs shows the API, /metrics is for Prometheus.
    A new package in the same folder is verified and then takes the traffic.

    Args:
        package: folder that apps.export wrote; a remote one is fetched once, at the start.
    """
    with local_folder(package) as folder:
        app = create_app(folder, config)
        options = uvicorn.Config(
            app,
            config.host,
            config.port,
            timeout_graceful_shutdown=round(config.drain_s),
            access_log=False,
            timeout_keep_alive=75,
            log_level="info",
        )
        _Server(options, config.notice_s).run()


if __name__ == "__main__":
    run(main)
