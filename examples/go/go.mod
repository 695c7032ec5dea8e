module peerseal.example/peer

go 1.25
