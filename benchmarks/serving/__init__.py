"""The parts of `scripts/bench online`: servers of models compared over HTTP on one machine.

machine        cores for the server and the load generator, CPU time and memory of process trees
environments   a virtual environment for each peer, from benchmarks/peers/NAME.txt
models         the fitted models, their rows and the answers of scikit-learn
protocols      how each server takes a row and returns probabilities
servers        the table of servers: commands, settings, start, check of answers, stop
wrk            the load generator
results        measurements in a file that a later run resumes; medians
report         tables, targets and the section of docs/performance.md
plot           the figure as SVG, light and dark
"""
