"""What the options that take a SPEC accept, as the help and the error messages show it.

The parsers stand beside the code that they build; these texts stand apart, so that the help does not import torch.
"""

CODECS = (
    "bfloat16, int8, int4, topk:FRACTION, nm:N:M, rank:R (such as topk:0.02, nm:2:4, rank:4), or "
    "sparseloco[:KEPT][:clip] with KEPT of each 4096 (64)"
)
DISTURB = (
    "WORKER:FROM-TO:FACTOR,..., such as 0:60-120:4, or random:RATE:SECONDS:FACTOR with RATE an hour and worker; "
    "the seconds are the run's, and with FACTOR inf the worker stands still"
)
FAILURES = "RATE:SECONDS, failures an hour and worker above 0 and seconds from 0 until the group goes on"
FAULTS = "noise:K:SIGMA, scale:K:FACTOR, sign:K, nan:K:STEP"
GRAPHS = "ring, ring:DEGREE, exponential, hypercube, torus, complete"
LINK = "RATE[,DELAY][,LOSS], such as 100mbit or 1gbit,5ms or 50mbit,20ms,0.1%"
METHODS = (
    "NAME, or NAME+SETTING=VALUE+..., with a strategy's settings or codec, delay, eager, mix, fragments, when, "
    "balance, objective, sampling, sparse and regularizer"
)
OPTIMIZER_STATES = (
    "local, each worker keeps its own; mean, each round averages them; or NAME=K,..., those in each K-th round, "
    "such as exp_avg=3,exp_avg_sq=6"
)
REGULARIZERS = "dropout:P, or localdrop[:NAME=VALUE,...] such as localdrop:lam=1e-3,head=10"
SPARSE = "N:M[,DECAY], such as 2:4 or 2:4,0 (STE)"
SHARDS = "iid, contiguous, dealt, classes:K, dirichlet:ALPHA, bad-labels:K, seldp, or one of them +bad-labels:K"
STRAGGLERS = "lognormal:SIGMA with 0 < SIGMA <= 3, or slow:K:FACTOR with K workers and 1 <= FACTOR <= 1000"
TRIGGERS = "every:N, never, warmup:STEPS,SPEC, change:THRESHOLD, qsr:BASE,ALPHA, time:SECONDS"
