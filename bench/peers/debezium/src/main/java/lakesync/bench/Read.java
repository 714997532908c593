package lakesync.bench;

import com.sun.management.OperatingSystemMXBean;
import io.debezium.embedded.Connect;
import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.RecordChangeEvent;
import io.debezium.engine.format.ChangeEventFormat;
import io.debezium.engine.format.Json;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Locale;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.connect.source.SourceRecord;

/**
 * Reads a number of row changes of one table from the binary log, beginning after a set of GTIDs, counts them and drops them. With
 * `snapshot` instead of GTIDs, that many rows of the table itself, as the connector's first snapshot reads them.
 *
 * <p>Prints rows; seconds and CPU seconds from the first row on, without the start of the machine and of the engine; and the peak of
 * memory, as JSON.
 */
public final class Read {
    private static final OperatingSystemMXBean SYSTEM =
            (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();

    private static final String SNAPSHOT = "snapshot";

    private final long wanted;
    private final CountDownLatch done = new CountDownLatch(1);
    private long rows;
    private long beganNs;
    private long beganCpuNs;
    private long seconds9;
    private long cpu9;
    private volatile String failure;

    private Read(long wanted) {
        this.wanted = wanted;
    }

    /** Port, user, password, schema.table, first binary log file, GTIDs or `snapshot`, rows, `json` or `connect`. */
    public static void main(String[] given) throws Exception {
        Read read = new Read(Long.parseLong(given[6]));
        Properties properties = properties(given);
        // The engine converts in as many threads as there are cores, and hands over in order.
        DebeziumEngine<?> engine = given[7].equals("json")
                ? DebeziumEngine.create(Json.class).using(properties).using(read::ended).notifying(read::json).build()
                : DebeziumEngine.create(ChangeEventFormat.of(Connect.class)).using(properties).using(read::ended)
                        .notifying(read::records).build();
        Thread thread = new Thread(engine);
        thread.start();
        read.done.await();
        if (read.failure != null) {
            System.err.println(read.failure);
            System.exit(1);
        }
        boolean snapshot = given[5].equals(SNAPSHOT);
        if (!snapshot) {
            engine.close();
            thread.join();
        }
        System.out.printf(Locale.ROOT, "{\"rows\": %d, \"wall_s\": %.3f, \"cpu_s\": %.3f, \"peak_mib\": %.1f}%n",
                read.rows, read.seconds9 / 1e9, read.cpu9 / 1e9, peakMib());
        System.out.flush();
        // In the midst of a snapshot the engine does not end by itself.
        Runtime.getRuntime().halt(0);
    }

    private static Properties properties(String[] given) {
        Properties properties = new Properties();
        properties.setProperty("name", "bench");
        properties.setProperty("connector.class", "io.debezium.connector.mysql.MySqlConnector");
        properties.setProperty("topic.prefix", "bench");
        properties.setProperty("database.hostname", "127.0.0.1");
        properties.setProperty("database.port", given[0]);
        properties.setProperty("database.user", given[1]);
        properties.setProperty("database.password", given[2]);
        properties.setProperty("database.ssl.mode", "disabled");
        properties.setProperty("driver.allowPublicKeyRetrieval", "true");
        properties.setProperty("database.server.id", "4343");
        properties.setProperty("table.include.list", given[3]);
        if (given[5].equals(SNAPSHOT)) {
            properties.setProperty("offset.storage", "org.apache.kafka.connect.storage.MemoryOffsetBackingStore");
            properties.setProperty("snapshot.mode", "initial");
        } else {
            properties.setProperty("offset.storage", Start.class.getName());
            properties.setProperty(Start.FILE, given[4]);
            properties.setProperty(Start.GTIDS, given[5]);
            // With an offset and no history of schemas: these are read from the source, and the rows from the log.
            properties.setProperty("snapshot.mode", "recovery");
        }
        properties.setProperty("snapshot.locking.mode", "none");
        properties.setProperty("schema.history.internal", "io.debezium.relational.history.MemorySchemaHistory");
        properties.setProperty("include.schema.changes", "false");
        properties.setProperty("tombstones.on.delete", "false");
        properties.setProperty("converter.schemas.enable", "false");
        return properties;
    }

    private void json(List<ChangeEvent<String, String>> batch, DebeziumEngine.RecordCommitter<ChangeEvent<String, String>> committer)
            throws InterruptedException {
        for (ChangeEvent<String, String> event : batch) {
            count(event.value());
            committer.markProcessed(event);
        }
        committer.markBatchFinished();
    }

    private void records(
            List<RecordChangeEvent<SourceRecord>> batch,
            DebeziumEngine.RecordCommitter<RecordChangeEvent<SourceRecord>> committer)
            throws InterruptedException {
        for (RecordChangeEvent<SourceRecord> event : batch) {
            count(event.record().value());
            committer.markProcessed(event);
        }
        committer.markBatchFinished();
    }

    private void count(Object value) {
        if (value == null || rows == wanted) {
            return;
        }
        if (rows == 0) {
            beganNs = System.nanoTime();
            beganCpuNs = SYSTEM.getProcessCpuTime();
        }
        if (++rows == wanted) {
            seconds9 = System.nanoTime() - beganNs;
            cpu9 = SYSTEM.getProcessCpuTime() - beganCpuNs;
            done.countDown();
        }
    }

    private void ended(boolean success, String message, Throwable error) {
        if (!success) {
            failure = message + ": " + error;
        }
        done.countDown();
    }

    private static double peakMib() throws Exception {
        for (String line : Files.readAllLines(Path.of("/proc/self/status"))) {
            if (line.startsWith("VmHWM:")) {
                return Long.parseLong(line.replaceAll("[^0-9]", "")) / 1024.0;
            }
        }
        return 0;
    }
}
