"""Example services for Tollgate: small real computations behind a real gateway.

Five services share this package: ml, nlp, fraud, data and blockchain. Each one is
a folder with pure functions and a ``routes`` module that binds them to HTTP;
everything that the services have in common (health, request ids, access log,
tracing, errors, the fault switch) is in ``app``, ``edge``, ``problem`` and ``faults``.
"""

__version__ = "0.1.0"
