"""What the options that take a SPEC accept, as the help and the error messages show it.

The parsers stand beside the code that they build; these texts stand apart, so that the help does not import torch.
"""

CODECS = "bfloat16, int8, int4, topk:FRACTION (such as topk:0.02)"
FAULTS = "noise:K:SIGMA, scale:K:FACTOR, sign:K, nan:K:STEP"
SHARDS = "iid, dealt, classes:K, dirichlet:ALPHA, bad-labels:K, seldp, or one of them +bad-labels:K"
TRIGGERS = "every:N (one for each rank: every:N,N,...), never, warmup:STEPS,SPEC, change:THRESHOLD, qsr:BASE,ALPHA"
