"""The demo: silicon before and after the training set gains the structures that it lacks.

`story` has the two jobs and what they tell, `plots` the pictures, ``data`` the structures;
`make_data` made them with the potential of `tersoff`.
"""
