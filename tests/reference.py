"""Reference computations shared by several tests, written from their formulas."""

import torch


class ClippedSgd:
    """SGD with momentum on the clipped gradient of one network; weight decay for tensors of two dimensions."""

    def __init__(self, network, momentum, clip_norm, weight_decay):
        self.network = network
        self.momentum, self.clip_norm, self.weight_decay = momentum, clip_norm, weight_decay
        self.velocity = {}

    def step(self, loss, rate_of, frozen=()):
        """`rate_of(name)`: learning rate of a parameter; frozen ones are ignored."""
        names, parameters = zip(*self.network.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
        moving = {name: gradient for name, gradient in zip(names, gradients, strict=True) if name not in frozen}
        norm = sum(gradient.square().sum() for gradient in moving.values()).sqrt()
        assert norm > self.clip_norm, "clipping must have an effect in these tests"
        with torch.no_grad():
            for name, gradient in moving.items():
                parameter = self.network.get_parameter(name)
                change = gradient * self.clip_norm / norm
                if parameter.ndim > 1:
                    change = change + self.weight_decay * parameter
                self.velocity[name] = self.momentum * self.velocity.get(name, torch.zeros_like(change)) + change
                parameter.sub_(rate_of(name) * self.velocity[name])


def assert_same_course(actual, expected, before):
    """Every tensor moved as in the reference, to a thousandth of its movement and to rounding."""
    for name, value in expected.items():
        way, error = (value - before[name]).float().norm(), (actual[name] - value).float().norm()
        assert error <= 1e-3 * way + 1e-6 * value.numel() ** 0.5, (name, float(error), float(way))
    moved = [name for name, value in expected.items() if not torch.equal(value, before[name])]
    assert len(moved) > 0.8 * len(expected)
