"""Denoisers f(x, t, cond) -> same shape as x, with x: (batch, time, agent, feature); they know no schedule."""
