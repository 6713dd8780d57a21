"""Why a model is as good as it is: order, calibration, loss by position, gradient variance, drift."""
