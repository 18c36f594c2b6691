import pytest
import torch

from nasrec_torchrec.training.precision import check_precision, matmul_precision

CPU = torch.device("cpu")


def test_what_a_device_lacks_is_refused_and_what_is_slow_is_said(monkeypatch: pytest.MonkeyPatch):
    for precision in ("fp32", "bf16"):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
        assert check_precision(precision, CPU) == []
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    (said,) = check_precision("bf16", CPU)
    assert "no instructions for it" in said and check_precision("fp32", CPU) == []
    with pytest.raises(ValueError, match="tf32 is a mode of GPUs, and this training runs on the CPU; use fp32 or bf16"):
        check_precision("tf32", CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "V100")
    for precision in ("tf32", "bf16"):
        with pytest.raises(
            ValueError, match=f"{precision} needs a GPU of compute capability 8.0 or newer, and V100 has 7.0"
        ):
            check_precision(precision, torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert check_precision("tf32", torch.device("cuda")) == []


def test_tf32_lasts_as_long_as_the_training():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(OSError), matmul_precision("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
        raise OSError
    assert torch.get_float32_matmul_precision() == before
    with matmul_precision("fp32"):
        assert torch.get_float32_matmul_precision() == before
