// Judge of a Peerseal ledger over HTTP, with the Go checksum database's own code: golang.org/x/mod/sumdb/tlog and note.
//
//	judge URL VERIFIER_KEY OLD_SIZE [KID]
//
// It opens the checkpoint with the verifier key, reads hashes from tiles (every one authenticated against the
// checkpoint), makes and checks an inclusion proof of the last entry and a consistency proof from OLD_SIZE, compares the
// registry's own proofs with them, and hashes every entry of the last bundle. It prints one JSON object, or fails.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const height = 8

var base string

func main() {
	base = os.Args[1]
	old, err := strconv.ParseInt(os.Args[3], 10, 64)
	check(err)
	tree, origin := checkpoint(os.Args[2])
	hashes := tlog.TileHashReader(tree, tiles{})
	last := tree.N - 1
	leaf := lastLeaf(tree.N)

	record, err := tlog.ProveRecord(tree.N, last, hashes)
	check(err)
	check(tlog.CheckRecord(record, tree.N, tree.Hash, last, leaf))

	oldRoot, err := tlog.TreeHash(old, hashes)
	check(err)
	proof, err := tlog.ProveTree(tree.N, old, hashes)
	check(err)
	check(tlog.CheckTree(proof, tree.N, tree.Hash, old, oldRoot))
	ours := tlog.TreeProof(consistency(old, tree.N))
	check(tlog.CheckTree(ours, tree.N, tree.Hash, old, oldRoot))
	if len(ours) != len(proof) || (len(proof) > 0 && !reflect.DeepEqual(ours, proof)) {
		fail("the registry's consistency proof is another one")
	}
	told := map[string]any{"origin": origin, "size": tree.N, "root": tree.Hash.String(), "old_root": oldRoot.String()}
	if len(os.Args) > 4 {
		told["kid_index"] = inclusion(os.Args[4], tree, hashes)
	}
	check(json.NewEncoder(os.Stdout).Encode(told))
}

// checkpoint opens the signed note and reads its three lines.
func checkpoint(key string) (tlog.Tree, string) {
	verifier, err := note.NewVerifier(key)
	check(err)
	opened, err := note.Open(get("/ledger/checkpoint"), note.VerifierList(verifier))
	check(err)
	if len(opened.Sigs) != 1 || len(opened.UnverifiedSigs) != 0 {
		fail("not exactly one signature")
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		fail("not three lines")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	check(err)
	return tlog.Tree{N: size, Hash: hash(lines[2], base64.StdEncoding)}, lines[0]
}

// tiles reads tiles as C2SP tlog-tiles names them: as the Go checksum database does, without the height.
type tiles struct{}

func (tiles) Height() int                     { return height }
func (tiles) SaveTiles([]tlog.Tile, [][]byte) {}
func (tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var read [][]byte
	for _, tile := range wanted {
		path := strings.Replace(tile.Path(), fmt.Sprintf("tile/%d/", height), "tile/", 1)
		read = append(read, get("/ledger/"+path))
	}
	return read, nil
}

// lastLeaf hashes the last entry, from the last bundle, and checks that the bundle ends with it.
func lastLeaf(size int64) tlog.Hash {
	first := (size - 1) / 256
	tile := tlog.Tile{H: height, L: 0, N: first, W: int(size - first*256)}
	path := strings.Replace(tile.Path(), fmt.Sprintf("tile/%d/0/", height), "tile/entries/", 1)
	bundle := bytes.NewReader(get("/ledger/" + path))
	level := get("/ledger/" + strings.Replace(tile.Path(), fmt.Sprintf("tile/%d/", height), "tile/", 1))
	var leaf tlog.Hash
	for number := 0; number < tile.W; number++ {
		var length uint16
		check(binary.Read(bundle, binary.BigEndian, &length))
		entry := make([]byte, length)
		_, err := io.ReadFull(bundle, entry)
		check(err)
		leaf = tlog.RecordHash(entry)
		if !bytes.Equal(leaf[:], level[number*32:(number+1)*32]) {
			fail("an entry is not what its tile says")
		}
	}
	if bundle.Len() != 0 {
		fail("something follows the last entry")
	}
	return leaf
}

func consistency(old, size int64) []tlog.Hash {
	var answer struct {
		From, To int64
		Proof    []string
	}
	check(json.Unmarshal(get(fmt.Sprintf("/ledger/proof?from=%d&to=%d", old, size)), &answer))
	if answer.From != old || answer.To != size {
		fail("a proof for other sizes")
	}
	return decoded(answer.Proof)
}

// inclusion checks the registry's proof for a key, and compares it with the one from the tiles.
func inclusion(kid string, tree tlog.Tree, hashes tlog.HashReader) int64 {
	var answer struct {
		Kid, Leaf   string
		Index, Size int64
		Proof       []string
	}
	check(json.Unmarshal(get("/ledger/proof?kid="+url.QueryEscape(kid)), &answer))
	leaf, proof := hash(answer.Leaf, base64.RawURLEncoding), tlog.RecordProof(decoded(answer.Proof))
	if answer.Kid != kid || answer.Size != tree.N {
		fail("a proof of another key or size")
	}
	check(tlog.CheckRecord(proof, tree.N, tree.Hash, answer.Index, leaf))
	own, err := tlog.ProveRecord(tree.N, answer.Index, hashes)
	check(err)
	if !reflect.DeepEqual(own, proof) {
		fail("the registry's inclusion proof is another one")
	}
	return answer.Index
}

func decoded(texts []string) []tlog.Hash {
	var hashes []tlog.Hash
	for _, text := range texts {
		hashes = append(hashes, hash(text, base64.RawURLEncoding))
	}
	return hashes
}

func hash(text string, encoding *base64.Encoding) (decoded tlog.Hash) {
	data, err := encoding.DecodeString(text)
	check(err)
	if copy(decoded[:], data) != len(decoded) || len(data) != len(decoded) {
		fail("not a hash: " + text)
	}
	return decoded
}

func get(path string) []byte {
	answer, err := http.Get(base + path)
	check(err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	check(err)
	if answer.StatusCode != 200 {
		fail(fmt.Sprintf("GET %s: %s", path, answer.Status))
	}
	return body
}

func check(err error) {
	if err != nil {
		fail(err.Error())
	}
}

func fail(reason string) {
	fmt.Fprintln(os.Stderr, reason)
	os.Exit(1)
}
