"""The style of reports, see :mod:`nasrec_torchrec.page_style`."""

from nasrec_torchrec.page_style import STYLE, calibration_curve, page, table

__all__ = ["STYLE", "calibration_curve", "page", "table"]
