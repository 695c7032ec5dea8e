// The other side of a witness, made of torchwood's and the Go checksum database's own code.
//
//	judge agent SOCKET            serves an ssh-agent with a new Ed25519 key, for litewitness; prints the key's fingerprint
//	judge key NAME                prints {"signer", "verifier"}: a new key of a log
//	judge open WITNESS_KEY LOG_KEY
//	                              opens the cosigned checkpoint on standard input with torchwood's verifiers of both;
//	                              prints {"size", "time"}
//	judge submit URL WITNESS_KEY SIGNER SIZE...
//	                              grows a log, submits it at each size, and opens what was cosigned with torchwood's
//	                              verifier; prints [{"size", "time"}]
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func main() {
	switch os.Args[1] {
	case "agent":
		serveAgent(os.Args[2])
	case "key":
		signer, verifier, err := note.GenerateKey(rand.Reader, os.Args[2])
		check(err)
		tell(map[string]string{"signer": signer, "verifier": verifier})
	case "open":
		openCosigned(os.Args[2], os.Args[3])
	case "submit":
		submitAll(os.Args[2], os.Args[3], os.Args[4], os.Args[5:])
	}
}

func serveAgent(socket string) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	check(err)
	keys := agent.NewKeyring()
	check(keys.Add(agent.AddedKey{PrivateKey: key}))
	public, err := ssh.NewPublicKey(key.Public())
	check(err)
	listener, err := net.Listen("unix", socket)
	check(err)
	fmt.Println(ssh.FingerprintSHA256(public))
	for {
		connection, err := listener.Accept()
		check(err)
		go agent.ServeAgent(keys, connection)
	}
}

func openCosigned(witnessKey, logKey string) {
	witness, err := torchwood.NewCosignatureVerifier(witnessKey)
	check(err)
	log, err := note.NewVerifier(logKey)
	check(err)
	cosigned, err := io.ReadAll(os.Stdin)
	check(err)
	opened, err := note.Open(cosigned, note.VerifierList(witness, log))
	check(err)
	if len(opened.Sigs) != 2 {
		fail(fmt.Sprintf("%d signatures verify, expected the log's and the witness'", len(opened.Sigs)))
	}
	checkpoint, err := torchwood.ParseCheckpoint(opened.Text)
	check(err)
	for _, signature := range opened.Sigs {
		if signature.Hash == witness.KeyHash() {
			at, err := torchwood.CosignatureTimestamp(signature)
			check(err)
			tell(map[string]int64{"size": checkpoint.N, "time": at})
		}
	}
}

// hashes is a tree in memory.
type hashes []tlog.Hash

func (h hashes) ReadHashes(indexes []int64) (found []tlog.Hash, err error) {
	for _, index := range indexes {
		found = append(found, h[index])
	}
	return found, nil
}

func submitAll(url, witnessKey, signerKey string, sizes []string) {
	signer, err := note.NewSigner(signerKey)
	check(err)
	witness, err := torchwood.NewCosignatureVerifier(witnessKey)
	check(err)
	var stored hashes
	var old, grown int64
	var told []map[string]int64
	for _, text := range sizes {
		size, err := strconv.ParseInt(text, 10, 64)
		check(err)
		for ; grown < size; grown++ {
			more, err := tlog.StoredHashes(grown, []byte(fmt.Sprint("entry ", grown)), stored)
			check(err)
			stored = append(stored, more...)
		}
		told = append(told, map[string]int64{"size": size, "time": submit(url, witness, signer, stored, old, size)})
		old = size
	}
	tell(told)
}

func submit(url string, witness *torchwood.CosignatureVerifier, signer note.Signer, stored hashes, old, size int64) int64 {
	root, err := tlog.TreeHash(size, stored)
	check(err)
	checkpoint := torchwood.Checkpoint{Origin: signer.Name(), Tree: tlog.Tree{N: size, Hash: root}}
	signed, err := note.Sign(&note.Note{Text: checkpoint.String()}, signer)
	check(err)
	body := bytes.NewBufferString(fmt.Sprintf("old %d\n", old))
	if old > 0 {
		proof, err := tlog.ProveTree(size, old, stored)
		check(err)
		for _, hash := range proof {
			fmt.Fprintln(body, hash)
		}
	}
	fmt.Fprintf(body, "\n%s", signed)
	answer, err := http.Post(url+"/add-checkpoint", "", body)
	check(err)
	defer answer.Body.Close()
	lines, err := io.ReadAll(answer.Body)
	check(err)
	if answer.StatusCode != 200 {
		fail(fmt.Sprintf("size %d: %s: %s", size, answer.Status, lines))
	}
	opened, err := note.Open(append(signed, lines...), note.VerifierList(witness))
	check(err)
	at, err := torchwood.CosignatureTimestamp(opened.Sigs[0])
	check(err)
	if time.Since(time.Unix(at, 0)).Abs() > time.Hour {
		fail("the time of the cosignature is not now")
	}
	return at
}

func tell(value any) { check(json.NewEncoder(os.Stdout).Encode(value)) }

func check(err error) {
	if err != nil {
		fail(err.Error())
	}
}

func fail(reason string) {
	fmt.Fprintln(os.Stderr, reason)
	os.Exit(1)
}
