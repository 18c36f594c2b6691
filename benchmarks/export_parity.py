"""Checks that exported packages give the logits of the eager model.

    python benchmarks/export_parity.py

The six published networks and random ones are compiled and compared on batches of 1, 7 and 512 rows, with empty bags
and several ids in a bag. Networks with random weights may have logits of many thousands, so a difference counts
relative to the largest logit of the batch if that is above 1. Compiling takes about 20 seconds per network.
"""

import tempfile
from pathlib import Path

import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from tqdm import tqdm

from nasrec_torchrec import NASREC_FULL, PUBLISHED, NASRecNet
from nasrec_torchrec.cli import run
from nasrec_torchrec.inference.config import ExportConfig
from nasrec_torchrec.inference.exporting import INDUCTOR_OPTIONS
from nasrec_torchrec.inference.scoring_model import scoring_model, trace

NUM_DENSE, NUM_SPARSE, ROWS = 13, 26, 1000


@torch.no_grad()
def main(random: int = 50, first: int = 0) -> None:
    """Prints the largest differences.

    Args:
        random: Number of networks to sample from NASRec-Full.
        first: Index of the network to start with, to continue an earlier run.
    """
    drawn = {f"random {n}": NASREC_FULL.sample(torch.Generator().manual_seed(n)) for n in range(random)}
    worst = 0.0
    for name, architecture in tqdm(list((PUBLISHED | drawn).items())[first:], desc="networks", mininterval=10):
        torch.manual_seed(0)
        tables = [
            EmbeddingBagConfig(name=f"t{i}", embedding_dim=16, num_embeddings=ROWS, feature_names=[f"f{i}"])
            for i in range(NUM_SPARSE)
        ]
        model = NASRecNet(EmbeddingBagCollection(tables=tables), NUM_DENSE, architecture).eval()
        with tempfile.TemporaryDirectory() as folder:
            package = str(Path(folder) / "model.pt2")
            torch._inductor.aoti_compile_and_package(
                trace(scoring_model(model, ExportConfig())), package_path=package, inductor_configs=INDUCTOR_OPTIONS
            )
            compiled = torch._inductor.aoti_load_package(package)
            for batch_size in (1, 7, 512):
                lengths = torch.randint(0, 4, (NUM_SPARSE, batch_size))
                ids, dense = torch.randint(0, ROWS, (int(lengths.sum()),)), torch.randn(batch_size, NUM_DENSE)
                keyed = KeyedJaggedTensor([f"f{i}" for i in range(NUM_SPARSE)], ids, lengths=lengths.flatten())
                logits = model(dense, keyed).flatten()
                difference = float((compiled(dense, ids, lengths) - logits).abs().max())
                worst = max(worst, difference)
                if difference > 1e-5:
                    print(
                        f"{name}, batch {batch_size}: {difference:.2g} of {float(logits.abs().max()):.2g}", flush=True
                    )
    print(f"largest difference {worst:.2g}")


if __name__ == "__main__":
    run(main)
