"""How many examples Hypothesis draws: what the profile says, and fewer where each takes long."""

from hypothesis import settings

few = settings(max_examples=max(1, settings().max_examples // 4))
