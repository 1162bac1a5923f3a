"""The RNIC: MPA, DDP, RDMAP, STag table, QP, CQ, CM. Sans-I/O: fed bytes, answers with bytes and events."""
