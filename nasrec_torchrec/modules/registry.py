"""Which module computes which operator."""

from nasrec_torchrec.modules.attention import Attention
from nasrec_torchrec.modules.dense_sum import DenseSum
from nasrec_torchrec.modules.dot_product import DotProduct
from nasrec_torchrec.modules.embedded_fully_connected import EmbeddedFullyConnected
from nasrec_torchrec.modules.fully_connected import FullyConnected
from nasrec_torchrec.modules.operator import Operator
from nasrec_torchrec.modules.sigmoid_gating import SigmoidGating

OPERATORS: dict[str, type[Operator]] = {
    "fully_connected": FullyConnected,
    "dot_product": DotProduct,
    "sigmoid_gating": SigmoidGating,
    "sum": DenseSum,
    "embedded_fully_connected": EmbeddedFullyConnected,
    "attention": Attention,
}
