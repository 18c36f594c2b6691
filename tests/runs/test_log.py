"""What TensorBoard shows of a run beside its scalars."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from nasrec_torchrec.runs.log import RunLog


def test_tensorboard_has_a_description_and_the_hyper_parameters(one_rank, tmp_path: Path):
    settings = {"learning_rate": 0.05, "optimizer": "adam", "sharding_type": None}
    with RunLog(tmp_path, 10, "run", settings=settings) as log:
        log.write("validation", 5, log_loss=0.5)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    text = events.Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "None" not in text  # of the builds of FBGEMM, one is installed
    assert "| command | " in text and "torch " in text
    contents = events.summary_metadata
    session, experiment, end = (
        HParamsPluginData.FromString(contents[f"_hparams_/{name}"].plugin_data.content)
        for name in ("session_start_info", "experiment", "session_end_info")
    )
    found = session.session_start_info.hparams
    assert (found["learning_rate"].number_value, found["optimizer"].string_value) == (0.05, "adam")
    assert "sharding_type" not in found and end.HasField("session_end_info")
    assert "validation/log_loss" in [info.name.tag for info in experiment.experiment.metric_infos]
    assert "validation/log_loss" in events.Tags()["scalars"]
