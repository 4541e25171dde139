"""Frameworks of before: Caffe, Torch7, Theano, Mahout."""
