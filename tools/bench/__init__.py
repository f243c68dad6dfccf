"""Measurements that anyone can repeat: against other libraries, and kernel by kernel. Run python -m microcnn.tools.bench"""
