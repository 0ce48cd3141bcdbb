"""A long run under random load and faults that knows what every byte must be.

``python -m tests.soak --minutes 5 --seed 7``. This process is the origin, the
clients and the hand that kills; the proxy is a process of its own.

- `world`: what the origin has and has had, and so what a proxy may say.
- `judge`: one answer held against that; pure.
- `weather`: what goes wrong at the origin.
- `clients`, `people`: who asks, and who gives orders.
- `server`: the proxy's program; `lives`: it runs, is watched, is killed.
- `run`: all of it together; `report`: what is counted and said.

The dice of each actor come from the seed. Threads and sockets do not, so that a
seed brings back a mixture of events and not their order.
"""
