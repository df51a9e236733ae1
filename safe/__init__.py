"""Plans that keep to constraints: sets, projections and the quadratic programs behind them, for any sampler."""
