"""The names of all files and folders of a run, each of them defined here and nowhere else."""

# Every folder that a program writes.
MARKER = ".nasrec.json"  # says that the folder is ours, and which of its files we wrote
LOCK = ".nasrec.lock"  # held by the process that writes the folder
CONFIG = "config.yaml"  # the flags of the run; --config repeats it

# A training.
LOG = "log.jsonl"
TENSORBOARD = "tensorboard"
PROFILE = "profile"
PLAN = "plan.txt"  # how the tables are sharded
PATHS = "paths.json"  # what a supernet's sampled paths contained
CHECKPOINTS = "checkpoints"
SKIPPED_BATCH = "skipped-batch-rank-{}.pt"  # the last of too many steps that changed nothing

# A checkpoint, CHECKPOINTS/step-00000020/.
CHECKPOINT = "step-{:08d}"
CHECKPOINT_PATTERN = "step-*"
BEST = "best.json"  # which checkpoint is meant for use; beside the checkpoints
DESCRIPTION = "model.json"  # which model it is
PROGRESS = "progress.json"  # where the training stands
DIGESTS = "digests.json"  # of the checkpoint's other files
DCP_METADATA = ".metadata"  # what torch.distributed.checkpoint finds its tensors by

# Several trainings of which the best is kept.
TRIAL = "trial-{:02d}-seed-{}"
TRIAL_PATTERN = "trial-*-seed-*"
RESULT = "result.json"  # of one trial
METRICS = "metrics.json"  # of all of them
SOFT_LABELS = "soft-labels.npy"  # what teachers predict for the training rows; its record ends with .json

# An incremental training; its record has the name RESULTS.
DAYS = "days"  # a folder for each day
PROGRESSIVE = "progressive.png"

# A search.
JOURNAL = "study.journal"
CANDIDATES = "candidates.parquet"
RESULTS = "results.json"
PICTURE = "search.png"
REPORT = "report.html"
FINALISTS = "finalists.json"
ARCHITECTURES = "architectures"

# A race of recipes, features and architectures; its results, page and winner's files have the names above.
RACE_JOURNAL = "race.journal"
RACE_TRIALS = "trials"
RACE_FINAL = "final"  # among the trials: the winner, trained on the validation rows too
RACE_TEACHERS = "teachers"  # what trials predict for the training rows, for those that they teach
RACE_TREE = "tree"  # the yardstick
RACE_TREE_BESIDE = "tree-of-winner"  # one that reads the winner's columns
TREES = "model.txt"  # of trained trees, whose record has the name RESULT
RACE_DATA = "data"  # with buckets of dense features, and the features of round 1, 2, ...: data-0, data-1
