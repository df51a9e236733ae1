"""A second implementation of one step, unit by unit in plain Python, without splash: the oracle of test_reference."""

import math

KEYS = ("position", "health", "shield", "cooldown", "energy", "calm", "target")


def play(scenario, state, actions, jitter, low, high):
    """Advance one battle given as lists per unit (position [(x, y)], health, ...) by eight loops."""
    b = Reference(scenario, {key: list(state[key]) for key in KEYS})
    b.choose_targets(actions)
    for k in range(8):
        before = list(zip(b.health, b.shield, strict=True))
        b.move(actions, low, high)
        fired = b.shoot(allies_first=k % 2 == 0)
        b.tick(fired, before, jitter[k])
    return {key: getattr(b, key) for key in KEYS}


class Reference:
    def __init__(self, scenario, state):
        self.units = list(scenario.ally_units) + list(scenario.enemy_units)
        self.n, self.everyone = len(scenario.ally_units), range(len(self.units))
        vars(self).update(state)
        escort = min(unit.speed for unit in self.units[self.n :] if not unit.healer)
        self.speed = [min(u.speed, escort) if u.healer and i >= self.n else u.speed for i, u in enumerate(self.units)]

    def apart(self, i, j):
        return math.dist(self.position[i], self.position[j])

    def touch(self, i, j):
        return self.units[i].radius + self.units[j].radius

    def reach(self, i, j):
        return self.units[i].reach + self.touch(i, j)

    def harmful(self, i, j):
        return self.units[i].damage > 0 and (self.units[j].layer != "air" or self.units[i].hits_air)

    def choose_targets(self, actions):
        units, n = self.units, self.n
        for i in range(n):
            self.target[i] = i if actions[i] < 6 else actions[i] - 6 + (0 if units[i].healer else n)
        for i in range(n, len(units)):
            if units[i].healer:
                sick = [j for j in range(n, len(units)) if self.health[j] > 0 and not units[j].healer]
                need = {j: self.health[j] / units[j].health + self.apart(i, j) / 1e4 for j in sick}
                self.target[i] = min(sick, key=need.get, default=i)
            elif self.health[i] > 0:
                self.target[i] = self.prey(i)

    def prey(self, i):
        seen = []
        for j in range(self.n):
            sight = max(self.units[i].scan, self.units[i].reach) + self.touch(i, j)
            if self.health[j] > 0 and self.harmful(i, j) and self.apart(i, j) <= sight:
                seen.append(j)
        old = self.target[i]
        if old in seen and (self.apart(i, old) <= self.reach(i, old) or self.target[old] == i):
            return old
        return min(seen, key=lambda j: (not self.units[j].healer, self.apart(i, j) - self.touch(i, j)), default=i)

    def move(self, actions, low, high):
        ways = {2: (0, 1), 3: (0, -1), 4: (1, 0), 5: (-1, 0)}
        self.in_reach, moves = {}, {}
        for i in [i for i in self.everyone if self.health[i] > 0]:
            (px, py), j = self.position[i], self.target[i]
            hunting = j != i and self.health[j] > 0
            goal = self.position[j] if hunting else (9, 16)
            dx, dy = goal[0] - px, goal[1] - py
            if i < self.n and not hunting:
                dx, dy = ways.get(actions[i], (0, 0))
            length = math.hypot(dx, dy)
            self.in_reach[i] = hunting and self.apart(i, j) <= self.reach(i, j)
            stride = min(self.speed[i], max(0, length - (self.reach(i, j) - 0.01 if hunting else 0)))
            share = stride / length if length > 0 else 0
            x, y = self.pushed(i)
            moves[i] = (px + dx * share + x, py + dy * share + y)
        for i, place in moves.items():
            self.position[i] = tuple(min(max(place[axis], low[axis][i]), high[axis][i]) for axis in (0, 1))

    def pushed(self, i):
        x = y = 0
        for j in self.everyone:
            overlap = self.touch(i, j) - self.apart(i, j)
            if j == i or self.health[j] <= 0 or overlap <= 0 or self.units[i].layer != self.units[j].layer:
                continue
            share = 0 if self.speed[i] == 0 else 1 if self.speed[j] == 0 else 0.5
            x -= overlap * share * (self.position[j][0] - self.position[i][0]) / self.apart(i, j)
            y -= overlap * share * (self.position[j][1] - self.position[i][1]) / self.apart(i, j)
        return x, y

    def shoot(self, allies_first):
        sides, fired = [range(self.n), range(self.n, len(self.units))], set()
        for side in sides if allies_first else sides[::-1]:
            for i in [i for i in side if self.health[i] > 0 and self.units[i].damage > 0]:
                j = self.target[i]
                if self.in_reach[i] and self.cooldown[i] <= 0 and self.health[j] > 0:
                    fired.add(i)
                    self.hit(self.units[i], j, self.units[i].attacks if self.harmful(i, j) else 0)
        return fired

    def hit(self, shooter, j, blows):
        blow = shooter.damage + (shooter.bonus if shooter.bonus_against in self.units[j].attributes else 0)
        for _ in range(blows):
            held = min(self.shield[j], blow)
            self.shield[j] -= held
            if blow > held:
                self.health[j] = max(0, self.health[j] - max(0.5, blow - held - self.units[j].armour))

    def tick(self, fired, before, jitter):
        for i in self.everyone:
            loaded = self.units[i].cooldown + jitter[i] if i in fired else self.cooldown[i]
            self.cooldown[i] = max(0, loaded - 1)
            hurt = self.health[i] < before[i][0] or self.shield[i] < before[i][1]
            self.calm[i] = 0 if hurt else self.calm[i] + 1
        self.heal()
        for i in [i for i in self.everyone if self.health[i] > 0]:
            self.health[i] = min(self.units[i].health, self.health[i] + self.units[i].regeneration)
            if self.calm[i] > 160:
                self.shield[i] = min(self.units[i].shield, self.shield[i] + 0.125)

    def heal(self):
        gifts = {}
        for i in [i for i in self.everyone if self.units[i].healer and self.health[i] > 0]:
            j = self.target[i]
            able = self.in_reach.get(i) and self.health[j] > 0
            gifts[i] = min(0.5625, self.energy[i] * 3, self.units[j].health - self.health[j]) if able else 0
            self.energy[i] = min(200, self.energy[i] - gifts[i] / 3 + 0.0352)
        for i, points in gifts.items():
            self.health[self.target[i]] += points
