"""Programs written for other RDMA libraries, run against steertag without a change to them."""
