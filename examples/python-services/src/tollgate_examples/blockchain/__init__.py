"""Bytecode, sandwiches, wallets and flows."""
