"""Step decay of the learning rate.

Jittor's own StepLR misses the drop after the first epoch (step size 1) and its state cannot be saved.
"""


class StepLR:
    """Multiplies the learning rate of every parameter group by `gamma` each `step_size` epochs (torch's `StepLR`)."""

    def __init__(self, optimizer, step_size, gamma=0.1):
        self.optimizer = optimizer
        self.step_size = step_size
        self.gamma = gamma
        self.last_epoch = 0

    def step(self):
        """To be called at the end of each epoch."""
        self.last_epoch += 1
        if self.last_epoch % self.step_size == 0:
            for group in self.optimizer.param_groups:
                group["lr"] *= self.gamma

    def state_dict(self):
        return {"step_size": self.step_size, "gamma": self.gamma, "last_epoch": self.last_epoch}

    def load_state_dict(self, state):
        self.step_size = state["step_size"]
        self.gamma = state["gamma"]
        self.last_epoch = state["last_epoch"]
