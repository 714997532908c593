package lakesync.bench;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.Set;
import org.apache.kafka.connect.runtime.WorkerConfig;
import org.apache.kafka.connect.storage.MemoryOffsetBackingStore;

/**
 * Offsets in memory that begin with one, so that the engine reads from there. By itself it would begin at the log's end, and store
 * no offset before one record has come.
 */
public final class Start extends MemoryOffsetBackingStore {
    static final String FILE = "start.file";
    static final String GTIDS = "start.gtids";

    @Override
    public void configure(WorkerConfig config) {
        super.configure(config);
        Map<String, String> given = config.originalsStrings();
        String key = String.format("[\"%s\",{\"server\":\"%s\"}]", given.get("name"), given.get("topic.prefix"));
        String value = String.format("{\"file\":\"%s\",\"pos\":4,\"gtids\":\"%s\"}", given.get(FILE), given.get(GTIDS));
        data.put(bytes(key), bytes(value));
    }

    private static ByteBuffer bytes(String text) {
        return ByteBuffer.wrap(text.getBytes(StandardCharsets.UTF_8));
    }

    @Override
    public Set<Map<String, Object>> connectorPartitions(String connector) {
        return Set.of();
    }
}
