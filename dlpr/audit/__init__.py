"""Nightly audits: is the training set still pinning down what the simulations visit?"""
