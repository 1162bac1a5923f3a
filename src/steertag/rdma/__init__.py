"""The RNIC: MPA, DDP, RDMAP, STag table, QP, CQ, CM; sans-I/O, fed bytes, answers with bytes."""
