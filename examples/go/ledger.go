// The transparency log: checkpoints, inclusion and consistency proofs (docs/protocol.md: Ledger; RFC 9162 section 2.1).
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"math/bits"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

type hash = []byte

var (
	noteBody      = regexp.MustCompile(`\A([^\n]+)\n(0|[1-9][0-9]{0,17})\n([A-Za-z0-9+/]{43}=)\n\z`)
	noteSignature = regexp.MustCompile(`\A— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})\z`)
	plainBase64   = base64.StdEncoding.Strict()
)

func leafHash(entry []byte) hash {
	sum := sha256.Sum256(append([]byte{0}, entry...))
	return sum[:]
}

func nodeHash(left, right hash) hash {
	sum := sha256.Sum256(slices.Concat([]byte{1}, left, right))
	return sum[:]
}

// decodeProof gives the hashes of a proof.
func decodeProof(value any) ([]hash, error) {
	list, ok := value.([]any)
	if !ok || len(list) > 64 {
		return nil, refuse("malformed_token", "not a proof")
	}
	proof := []hash{}
	for _, each := range list {
		part, err := decode(text(each))
		if err != nil || len(part) != 32 {
			return nil, refuse("malformed_token", "not a proof")
		}
		proof = append(proof, part)
	}
	return proof, nil
}

// Checkpoint is the ledger's head.
type Checkpoint struct {
	Size int64
	Root hash
}

// readCheckpoint reads a head that one of the ledger's keys signed.
func readCheckpoint(note, origin string, keys []ed25519.PublicKey) (*Checkpoint, error) {
	wrong := refuse("document_bad_checkpoint", "not a checkpoint of %s", origin)
	body, signatures, found := strings.Cut(note, "\n\n")
	body += "\n"
	parts := noteBody.FindStringSubmatch(body)
	if !found || len([]rune(note)) > 16384 || parts == nil || parts[1] != origin || !strings.HasSuffix(signatures, "\n") {
		return nil, wrong
	}
	root, err := plainBase64.DecodeString(parts[3])
	lines := strings.Split(strings.TrimSuffix(signatures, "\n"), "\n")
	if err != nil || len(lines) > 64 {
		return nil, wrong
	}
	ours := map[string][]byte{} // by key id
	for _, line := range lines {
		signed := noteSignature.FindStringSubmatch(line)
		if signed == nil {
			return nil, wrong
		}
		if value, err := plainBase64.DecodeString(signed[2]); signed[1] == origin {
			if err != nil || len(value) < 4 {
				return nil, wrong
			}
			ours[string(value[:4])] = value[4:]
		}
	}
	for _, key := range keys {
		id := sha256.Sum256(slices.Concat([]byte(origin+"\n\x01"), key))
		if signature, signed := ours[string(id[:4])]; signed {
			if !ed25519.Verify(key, []byte(body), signature) {
				return nil, wrong
			}
			size, _ := strconv.ParseInt(parts[2], 10, 64)
			return &Checkpoint{size, root}, nil
		}
	}
	return nil, refuse("document_unknown_signer", "no key of the ledger signed the checkpoint")
}

// checkInclusion checks that the leaf is at that index in the tree.
func checkInclusion(leaf hash, index int64, tree *Checkpoint, proof []hash) error {
	found := leaf
	whole := climb(index, tree.Size-1, proof, func(part hash, left bool) {
		if left {
			found = nodeHash(part, found)
		} else {
			found = nodeHash(found, part)
		}
	})
	if !whole || !bytes.Equal(found, tree.Root) {
		return refuse("document_not_in_ledger", "the proof does not lead to the root")
	}
	return nil
}

// checkConsistency checks that the newer tree begins with the older one.
func checkConsistency(older, newer *Checkpoint, proof []hash) error {
	wrong := refuse("document_inconsistent", "two histories of one ledger")
	if older.Size == 0 || older.Size == newer.Size {
		if len(proof) > 0 || (older.Size > 0 && !bytes.Equal(older.Root, newer.Root)) {
			return wrong
		}
		return nil
	}
	if older.Size&(older.Size-1) == 0 { // then the old root is a node of the new tree
		proof = append([]hash{older.Root}, proof...)
	}
	if older.Size > newer.Size || len(proof) == 0 {
		return wrong
	}
	before, after := proof[0], proof[0]
	skipped := bits.TrailingZeros64(uint64(older.Size))
	whole := climb((older.Size-1)>>skipped, (newer.Size-1)>>skipped, proof[1:], func(part hash, left bool) {
		if left {
			before, after = nodeHash(part, before), nodeHash(part, after)
		} else {
			after = nodeHash(after, part)
		}
	})
	if !whole || !bytes.Equal(before, older.Root) || !bytes.Equal(after, newer.Root) {
		return wrong
	}
	return nil
}

// climb goes from a node of a level whose last node is `last` up to the root. It says whether the proof has the right
// length.
func climb(number, last int64, proof []hash, step func(part hash, left bool)) bool {
	if number < 0 || number > last {
		return false
	}
	for _, part := range proof {
		if last == 0 {
			return false
		}
		left := number&1 == 1 || number == last
		step(part, left)
		for left && number != 0 && number&1 == 0 {
			number, last = number>>1, last>>1
		}
		number, last = number>>1, last>>1
	}
	return last == 0
}

// checkAdmission checks that the entry which admitted a key of a key set is in the ledger.
func checkAdmission(listed *ListedKey, service string, head *Checkpoint) error {
	data := map[string]any{
		"alg": listed.Alg, "jwk": listed.JWK, "active_from": listed.ActiveFrom, "expires_at": listed.ExpiresAt,
	}
	entry := map[string]any{
		"seq": listed.Index + 1, "time": listed.ActiveFrom, "type": "key_admitted", "service": service,
		"kid": listed.Kid, "by": listed.By, "evidence": listed.Evidence, "data": data,
	}
	if err := checkInclusion(leafHash(canonical(entry)), listed.Index, head, listed.Proof); err != nil {
		return err
	}
	ended := listed.ActiveUntil != listed.ExpiresAt
	if listed.ActiveUntil > listed.ExpiresAt || (listed.State == "active" && ended) {
		return refuse("document_not_in_ledger", "the key was admitted for another time")
	}
	return nil
}
