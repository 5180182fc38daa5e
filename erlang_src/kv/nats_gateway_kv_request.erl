%% What a request of a client to the key/value store asks for, and which rights it needs.
%%
%% Clients use JetStream's API (ADR-2, ADR-8 and ADR-31 of NATS). This module reads the part of it
%% that they use for buckets. All other requests are answered with JetStream's own errors. It has no
%% side effects.
-module(nats_gateway_kv_request).

-export([read/5]).
-export([deny/2]).
-export([type_of/1]).
-export([needs_store/1]).

-export_type([action/0, right/0, consumer/0, which/0]).

-type bucket() :: nats_gateway_kv_bucket:bucket().

-type right() :: {publish | subscribe, Topic :: binary()}.

%% The value of a key, the value with a revision, or the first one with at least this revision
-type which() ::
    {last, Key :: binary(), Topic :: binary()}
    | {revision, pos_integer()}
    | {next, KeyFilter :: binary(), Filter :: binary(), pos_integer()}.

%% Times are in milliseconds. `start' is the first revision that is delivered: `new' only delivers
%% what comes from now on.
-type consumer() :: #{
    %% undefined: the gateway chooses one
    name := undefined | binary(),
    deliver_topic := binary(),
    filters := [{KeyFilter :: binary(), Filter :: binary()}],
    start := new | non_neg_integer(),
    headers_only := boolean(),
    flow_control := boolean(),
    heartbeat := infinity | pos_integer(),
    inactive := pos_integer(),
    %% for answers
    config := map()
}.

-type action() ::
    account_info
    | {stream_names, Names :: [binary()], Offset :: non_neg_integer()}
    | {stream_list, [bucket()], Offset :: non_neg_integer()}
    | {stream_info, info | create | update, bucket()}
    %% the same, but the client may not know how many keys there are
    | {hidden, action()}
    | {get, direct | message, bucket(), which()}
    | {write, bucket(), Topic :: binary(), nats_gateway_kv_store:expected(), Write :: tuple()}
    | {purge, bucket(), Topic :: binary(), KeepsLast :: boolean()}
    | {create_consumer, bucket(), consumer()}
    | {consumer_info | delete_consumer, bucket(), Name :: binary()}
    | {consumer_names | consumer_list, bucket()}
    | {taken, Name :: binary(), Token :: binary()}
    %% the answer is known already
    | {answer, nats_gateway_kv_answer:answer()}
    | ignore.

-define(API, "$JS.API.").

%% Requests are small. The value of a key is no part of one.
-define(MAX_REQUEST, 65536).

-define(NS_PER_MS, 1000000).
%% What a nats-server takes where the client says nothing.
-define(INACTIVE_MS, 5000).
-define(MIN_HEARTBEAT_MS, 100).

%% Headers that say how to store a value. They are not stored.
-define(EXPECTED, <<"nats-expected-last-subject-sequence">>).
-define(EXPECTED_LAST, <<"nats-expected-last-sequence">>).
-define(EXPECTED_STREAM, <<"nats-expected-stream">>).
-define(EXPECTED_ID, <<"nats-expected-last-msg-id">>).
-define(MESSAGE_ID, <<"nats-msg-id">>).
-define(TTL, <<"nats-ttl">>).
-define(OPERATION, <<"kv-operation">>).
-define(ROLLUP, <<"nats-rollup">>).
-define(INSTRUCTIONS, [
    ?EXPECTED, ?EXPECTED_LAST, ?EXPECTED_STREAM, ?EXPECTED_ID, ?MESSAGE_ID, ?TTL, ?OPERATION, ?ROLLUP
]).

%% `Headers' is the block of an HPUB.
-spec read(Subject, Headers, Payload, Mountpoint, nats_gateway_kv_bucket:buckets()) ->
    {action(), [right()]}
when
    Subject :: binary(), Headers :: undefined | binary(), Payload :: binary(), Mountpoint :: binary().
read(Subject, Headers, Payload, Mountpoint, Buckets) ->
    try
        request(Subject, Headers, Payload, {Mountpoint, Buckets})
    catch
        throw:{answer, Answer} -> {{answer, Answer}, []}
    end.

%% What becomes of a request whose client does not have a right that it needs. Clients ask for the
%% stream before they do anything else, even if they may read only a few keys.
-spec deny(action(), right()) -> action().
deny(Action = {stream_info, _, _}, _) -> {hidden, Action};
deny(Action = {stream_list, _, _}, _) -> {hidden, Action};
deny(Action, {Kind, Topic}) -> {answer, {error, type_of(Action), {denied, Kind, Topic}}}.

%% The type of the answer to an error.
-spec type_of(action()) -> nats_gateway_kv_answer:type().
type_of({stream_list, _, _}) -> <<"stream_list">>;
type_of({stream_info, Kind, _}) -> <<"stream_", (atom_to_binary(Kind))/binary>>;
type_of({get, direct, _, _}) -> direct;
type_of({get, message, _, _}) -> <<"stream_msg_get">>;
type_of({write, Bucket, _, _, _}) -> {publish, nats_gateway_kv_bucket:stream(Bucket)};
type_of({purge, _, _, _}) -> <<"stream_purge">>;
type_of({create_consumer, _, _}) -> <<"consumer_create">>;
type_of(_) -> <<"error">>.

%% Whether the broker is asked.
-spec needs_store(action()) -> boolean().
needs_store({stream_list, _, _}) -> true;
needs_store({stream_info, _, _}) -> true;
needs_store({get, _, _, _}) -> true;
needs_store({write, _, _, _, _}) -> true;
needs_store({purge, _, _, _}) -> true;
needs_store({create_consumer, _, _}) -> true;
needs_store(_) -> false.

request(<<?API, Name/binary>>, _, Payload, Where) ->
    case byte_size(Payload) > ?MAX_REQUEST of
        true -> fail(type(Name), bad_request);
        false -> api(Name, Payload, Where)
    end;
request(<<"$JS.FC.", Rest/binary>>, _, _, _) ->
    case binary:split(Rest, <<".">>, [global]) of
        [_Stream, Name, Token] -> {{taken, Name, Token}, []};
        _ -> {ignore, []}
    end;
request(<<"$KV.", _/binary>> = Subject, Headers, Payload, {Mountpoint, Buckets}) ->
    case nats_gateway_kv_bucket:of_subject(Subject, Mountpoint, Buckets) of
        {ok, Bucket, Key} -> write(Bucket, Key, Headers, Payload);
        error -> throw({answer, no_responders})
    end;
%% No stream of a nats-server would have the subject.
request(_, _, _, _) ->
    throw({answer, no_responders}).


fail(Type, Error) -> throw({answer, {error, Type, Error}}).

%% -------------------------------------------------------------------------------------------
%% The API

api(<<"INFO">>, _, _) ->
    {account_info, []};
api(<<"STREAM.NAMES">> = Name, Payload, {_, Buckets}) ->
    Options = json(Name, Payload),
    Names = [<<"KV_", Each/binary>> || Each <- filtered(Options, Buckets)],
    {{stream_names, Names, offset(Options)}, []};
api(<<"STREAM.LIST">> = Name, Payload, {Mountpoint, Buckets}) ->
    Options = json(Name, Payload),
    Listed = [
        nats_gateway_kv_bucket:new(Each, maps:get(Each, Buckets), Mountpoint)
     || Each <- filtered(Options, Buckets)
    ],
    %% It counts keys, which is to say that it reads their names.
    {{stream_list, Listed, offset(Options)}, [all(Bucket) || Bucket <- Listed]};
api(<<"STREAM.INFO.", Stream/binary>> = Name, _, Where) ->
    Bucket = bucket(Name, Stream, Where),
    {{stream_info, info, Bucket}, [all(Bucket)]};
api(<<"STREAM.CREATE.", Stream/binary>> = Name, Payload, Where) ->
    configure(create, Name, Stream, Payload, Where);
api(<<"STREAM.UPDATE.", Stream/binary>> = Name, Payload, Where) ->
    configure(update, Name, Stream, Payload, Where);
api(<<"STREAM.DELETE.", Stream/binary>> = Name, _, Where) ->
    _ = bucket(Name, Stream, Where),
    fail(type(Name), {not_allowed, stream_delete});
api(<<"STREAM.PURGE.", Stream/binary>> = Name, Payload, Where) ->
    Bucket = bucket(Name, Stream, Where),
    purge(Name, Bucket, json(Name, Payload));
api(<<"STREAM.MSG.GET.", Stream/binary>> = Name, Payload, Where) ->
    get(message, Name, bucket(Name, Stream, Where), json(Name, Payload));
api(<<"STREAM.MSG.DELETE.", Stream/binary>> = Name, _, Where) ->
    _ = bucket(Name, Stream, Where),
    fail(type(Name), {not_allowed, message_delete});
api(<<"DIRECT.GET.", Rest/binary>> = Name, Payload, Where) ->
    case binary:split(Rest, <<".">>) of
        [Stream] -> get(direct, Name, bucket(Name, Stream, Where), direct_json(Payload));
        [Stream, Subject] -> get_last(direct, Name, bucket(Name, Stream, Where), Subject)
    end;
api(<<"CONSUMER.CREATE.", Rest/binary>> = Name, Payload, Where) ->
    {Stream, Consumer} =
        case binary:split(Rest, <<".">>) of
            [Only] -> {Only, undefined};
            [First, More] -> {First, hd(binary:split(More, <<".">>))}
        end,
    create_consumer(Name, bucket(Name, Stream, Where), Consumer, json(Name, Payload));
api(<<"CONSUMER.INFO.", Rest/binary>> = Name, _, Where) ->
    named_consumer(consumer_info, Name, Rest, Where);
api(<<"CONSUMER.DELETE.", Rest/binary>> = Name, _, Where) ->
    named_consumer(delete_consumer, Name, Rest, Where);
api(<<"CONSUMER.NAMES.", Stream/binary>> = Name, _, Where) ->
    {{consumer_names, bucket(Name, Stream, Where)}, []};
api(<<"CONSUMER.LIST.", Stream/binary>> = Name, _, Where) ->
    {{consumer_list, bucket(Name, Stream, Where)}, []};
api(Name, _, _) ->
    fail(type(Name), not_implemented).

type(<<"DIRECT.GET.", _/binary>>) ->
    direct;
type(Name) ->
    Words = [
        Word
     || Word <- binary:split(Name, <<".">>, [global]), Word =/= <<>>, string:uppercase(Word) =:= Word
    ],
    case Words of
        [<<"STREAM">>, <<"MSG">>, Verb | _] -> <<"stream_msg_", (string:lowercase(Verb))/binary>>;
        [<<"CONSUMER">>, <<"DURABLE">> | _] -> <<"consumer_create">>;
        [<<"CONSUMER">>, Verb | _] -> <<"consumer_", (string:lowercase(Verb))/binary>>;
        [<<"STREAM">>, Verb | _] -> <<"stream_", (string:lowercase(Verb))/binary>>;
        _ -> <<"error">>
    end.

%% An empty request has no options.
json(_, <<>>) ->
    #{};
json(Name, Payload) ->
    case nats_gateway_nif:json_decode(Payload) of
        {ok, Map} when is_map(Map) -> Map;
        _ -> fail(type(Name), invalid_json)
    end.

direct_json(Payload) ->
    case nats_gateway_nif:json_decode(Payload) of
        {ok, Map} when is_map(Map) -> Map;
        _ -> fail(direct, bad_request)
    end.

bucket(Name, Stream, {Mountpoint, Buckets}) ->
    case nats_gateway_kv_bucket:of_stream(Stream, Mountpoint, Buckets) of
        {ok, Bucket} -> Bucket;
        error -> fail(type(Name), stream_not_found)
    end.

%% Some clients look for the stream of a subject.
filtered(Options, Buckets) ->
    Names = nats_gateway_kv_bucket:names(Buckets),
    case Options of
        #{<<"subject">> := Subject} when is_binary(Subject), Subject =/= <<>> ->
            [
                Name
             || Name <- Names,
                nats_gateway_nif:subject_matches(<<"$KV.", Name/binary, ".>">>, Subject) orelse
                    nats_gateway_nif:subject_matches(Subject, <<"$KV.", Name/binary, ".x">>)
            ];
        #{} ->
            Names
    end.

offset(#{<<"offset">> := Offset}) when is_integer(Offset), Offset > 0 -> Offset;
offset(_) -> 0.

all(Bucket) ->
    {ok, Filter} = nats_gateway_kv_bucket:filter(<<">">>, Bucket),
    {subscribe, Filter}.

%% The buckets are those of the settings. Whoever creates one that is there gets it, as in a
%% nats-server, unless it is to keep a history.
configure(Kind, Name, Stream, Payload, {Mountpoint, Buckets}) ->
    Config = json(Name, Payload),
    case nats_gateway_kv_bucket:of_stream(Stream, Mountpoint, Buckets) of
        error when Kind =:= update -> fail(type(Name), stream_not_found);
        error -> fail(type(Name), {not_allowed, stream_create});
        {ok, Bucket} ->
            case is_compatible(Config, Bucket) of
                true -> {{stream_info, Kind, Bucket}, [all(Bucket)]};
                false -> fail(type(Name), other_configuration)
            end
    end.

is_compatible(Config, Bucket) ->
    Subjects = [<<"$KV.", (nats_gateway_kv_bucket:name(Bucket))/binary, ".>">>],
    maps:get(<<"subjects">>, Config, Subjects) =:= Subjects andalso
        lists:member(maps:get(<<"max_msgs_per_subject">>, Config, 1), [0, 1, -1]) andalso
        lists:member(maps:get(<<"max_age">>, Config, 0), [0, null]) andalso
        is_absent(<<"mirror">>, Config) andalso is_absent(<<"sources">>, Config) andalso
        is_absent(<<"republish">>, Config).

is_absent(Key, Config) -> lists:member(maps:get(Key, Config, null), [null, []]).

%% One key, because each needs a right of its own.
purge(Name, Bucket, Options) ->
    Subject = maps:get(<<"filter">>, Options, <<>>),
    Key = is_binary(Subject) andalso nats_gateway_kv_bucket:key(Subject, Bucket),
    case {Key, Options} of
        {_, #{<<"seq">> := _}} ->
            fail(type(Name), {not_allowed, purge});
        {{ok, Only}, _} ->
            case nats_gateway_kv_bucket:topic(Only, Bucket) of
                {ok, Topic} ->
                    Keep = maps:get(<<"keep">>, Options, 0),
                    {{purge, Bucket, Topic, Keep =/= 0}, [{publish, Topic}]};
                invalid ->
                    fail(type(Name), {not_allowed, purge})
            end;
        _ ->
            fail(type(Name), {not_allowed, purge})
    end.

all_keys(Bucket) -> <<"$KV.", (nats_gateway_kv_bucket:name(Bucket))/binary, ".>">>.

key_filter(Name, Subject, Bucket) when is_binary(Subject) ->
    case nats_gateway_kv_bucket:key(Subject, Bucket) of
        {ok, KeyFilter} ->
            case nats_gateway_kv_bucket:filter(KeyFilter, Bucket) of
                {ok, Filter} -> {KeyFilter, Filter};
                invalid -> fail(type(Name), {no_filter, Subject})
            end;
        error ->
            %% a filter that names more than this bucket, or the whole of it
            case Subject =:= <<">">> of
                true -> key_filter(Name, all_keys(Bucket), Bucket);
                false -> fail(type(Name), {no_filter, Subject})
            end
    end;
key_filter(Name, _, _) ->
    fail(type(Name), bad_request).

%% -------------------------------------------------------------------------------------------
%% Reading

get(Way, Name, Bucket, #{<<"last_by_subj">> := Subject}) when is_binary(Subject) ->
    get_last(Way, Name, Bucket, Subject);
get(Way, Name, Bucket, Options = #{<<"next_by_subj">> := Subject}) when is_binary(Subject) ->
    {KeyFilter, Filter} = key_filter(Name, Subject, Bucket),
    Revision =
        case Options of
            #{<<"seq">> := Seq} when is_integer(Seq), Seq > 0 -> Seq;
            #{} -> 1
        end,
    {{get, Way, Bucket, {next, KeyFilter, Filter, Revision}}, [{subscribe, Filter}]};
get(Way, _, Bucket, #{<<"seq">> := Seq}) when is_integer(Seq), Seq > 0 ->
    {{get, Way, Bucket, {revision, Seq}}, [all(Bucket)]};
get(_, Name, _, _) ->
    fail(type(Name), bad_request).

get_last(Way, Name, Bucket, Subject) ->
    case nats_gateway_kv_bucket:key(Subject, Bucket) of
        {ok, Key} ->
            case nats_gateway_kv_bucket:topic(Key, Bucket) of
                {ok, Topic} -> {{get, Way, Bucket, {last, Key, Topic}}, [{subscribe, Topic}]};
                invalid -> fail(type(Name), message_not_found)
            end;
        error ->
            fail(type(Name), message_not_found)
    end.

%% -------------------------------------------------------------------------------------------
%% Writing

write(Bucket, Key, Block, Payload) ->
    Headers = headers(Block),
    Stream = nats_gateway_kv_bucket:stream(Bucket),
    Expected = expected(Headers, Stream),
    case nats_gateway_kv_bucket:topic(Key, Bucket) of
        {ok, Topic} ->
            Write = written(Headers, Block, Payload, Stream),
            {{write, Bucket, Topic, Expected, Write}, [{publish, Topic}]};
        invalid ->
            fail({publish, Stream}, {failed, <<"no MQTT topic can hold this key">>})
    end.

headers(undefined) ->
    [];
headers(Block) ->
    {Pairs, _, _} = nats_gateway_nif:header_properties(Block),
    [{string:lowercase(Name), string:trim(Value)} || {Name, Value} <- Pairs].

value(Name, Headers) -> proplists:get_value(Name, Headers).

expected(Headers, Stream) ->
    Unsupported = [Name || Name <- [?EXPECTED_LAST, ?EXPECTED_ID], value(Name, Headers) =/= undefined],
    case {value(?EXPECTED_STREAM, Headers), Unsupported} of
        {Other, _} when Other =/= undefined, Other =/= Stream ->
            fail({publish, Stream}, other_stream);
        {_, [Name | _]} ->
            fail({publish, Stream}, {failed, <<Name/binary, " is not supported">>});
        _ ->
            ok
    end,
    case value(?EXPECTED, Headers) of
        undefined ->
            any;
        Text ->
            case string:to_integer(Text) of
                {N, <<>>} when N >= 0 -> N;
                _ -> fail({publish, Stream}, bad_request)
            end
    end.

written(Headers, Block, Payload, Stream) ->
    _ = lists:member(value(?ROLLUP, Headers), [undefined, <<"sub">>]) orelse
        fail({publish, Stream}, no_rollup),
    case value(?OPERATION, Headers) of
        undefined when Payload =:= <<>> ->
            fail(
                {publish, Stream},
                {failed, <<"MQTT retains no empty value: use delete, or a value of at least one byte">>}
            );
        undefined ->
            {put, stored(Headers, Block), Payload, ttl(value(?TTL, Headers), Stream)};
        <<"PUT">> ->
            written(proplists:delete(?OPERATION, Headers), Block, Payload, Stream);
        <<"DEL">> ->
            {delete, nats_gateway_kv_answer:deleted(<<"DEL">>)};
        <<"PURGE">> ->
            {delete, nats_gateway_kv_answer:deleted(<<"PURGE">>)};
        _ ->
            fail({publish, Stream}, bad_request)
    end.

%% The block as it came, if it holds only what is to be stored.
stored(Headers, Block) ->
    case [Name || {Name, _} <- Headers, lists:member(Name, ?INSTRUCTIONS)] of
        [] when Headers =:= [] -> undefined;
        [] -> Block;
        _ ->
            {Pairs, _, _} = nats_gateway_nif:header_properties(Block),
            case [Pair || Pair = {Name, _} <- Pairs, not lists:member(string:lowercase(Name), ?INSTRUCTIONS)] of
                [] -> undefined;
                Kept -> nats_gateway_kv_answer:block(Kept)
            end
    end.

%% Seconds, or a duration of Go. MQTT counts in seconds.
ttl(undefined, _) -> undefined;
ttl(<<"never">>, _) -> undefined;
ttl(Text, Stream) ->
    case string:to_integer(Text) of
        {N, <<>>} when N >= 1, N =< 16#FFFFFFFF -> N;
        _ -> duration(Text, 0, Stream)
    end.

duration(<<>>, Ms, _) when Ms >= 1000, Ms div 1000 =< 16#FFFFFFFF ->
    %% A value never goes before its time.
    (Ms + 999) div 1000;
duration(Text, Ms, Stream) ->
    case re:run(Text, "^([0-9]+(?:\\.[0-9]+)?)(ms|s|m|h|us|ns)(.*)$", [{capture, all_but_first, binary}]) of
        {match, [Number, Unit, Rest]} ->
            Part = round(number(Number) * maps:get(Unit, #{
                <<"ns">> => 0.000001, <<"us">> => 0.001, <<"ms">> => 1, <<"s">> => 1000,
                <<"m">> => 60000, <<"h">> => 3600000
            })),
            duration(Rest, Ms + Part, Stream);
        nomatch ->
            fail({publish, Stream}, invalid_ttl)
    end.

number(Text) ->
    case binary:match(Text, <<".">>) of
        nomatch -> binary_to_integer(Text);
        _ -> binary_to_float(Text)
    end.

%% -------------------------------------------------------------------------------------------
%% Consumers

named_consumer(Action, Name, Rest, Where) ->
    case binary:split(Rest, <<".">>) of
        [Stream, Consumer] -> {{Action, bucket(Name, Stream, Where), Consumer}, []};
        _ -> fail(type(Name), bad_request)
    end.

create_consumer(Name, Bucket, Named, #{<<"config">> := Config}) when is_map(Config) ->
    DeliverTopic = deliver_topic(Name, Config, Bucket),
    lists:foreach(
        fun({Key, Neutral}) ->
            lists:member(maps:get(Key, Config, hd(Neutral)), Neutral) orelse
                fail(type(Name), {consumer_option, Key})
        end,
        [
            {<<"durable_name">>, [null, <<>>]},
            {<<"deliver_group">>, [null, <<>>]},
            {<<"ack_policy">>, [<<"none">>]},
            {<<"replay_policy">>, [<<"instant">>]},
            {<<"rate_limit_bps">>, [0, null]},
            {<<"pause_until">>, [null]}
        ]
    ),
    Filters = [key_filter(Name, Subject, Bucket) || Subject <- filter_subjects(Config, Bucket)],
    Consumer = #{
        name => consumer_name(Name, Named, Config),
        deliver_topic => DeliverTopic,
        filters => Filters,
        start => start(Name, Config),
        headers_only => maps:get(<<"headers_only">>, Config, false) =:= true,
        flow_control => maps:get(<<"flow_control">>, Config, false) =:= true,
        heartbeat =>
            case milliseconds(<<"idle_heartbeat">>, Config) of
                0 -> infinity;
                Ms -> max(Ms, ?MIN_HEARTBEAT_MS)
            end,
        inactive =>
            case milliseconds(<<"inactive_threshold">>, Config) of
                0 -> ?INACTIVE_MS;
                Ms -> Ms
            end,
        config => Config
    },
    {{create_consumer, Bucket, Consumer}, [{subscribe, Filter} || {_, Filter} <- Filters]};
create_consumer(Name, _, _, _) ->
    fail(type(Name), bad_request).

%% The subject is under the same mountpoint as the bucket.
deliver_topic(Name, #{<<"deliver_subject">> := Subject}, Bucket) when is_binary(Subject), Subject =/= <<>> ->
    case nats_gateway_kv_bucket:inbox(Subject, Bucket) of
        {ok, Topic} -> Topic;
        invalid -> fail(type(Name), {consumer_option, <<"deliver_subject">>})
    end;
deliver_topic(Name, _, _) ->
    fail(type(Name), push_only).

filter_subjects(#{<<"filter_subjects">> := Subjects = [_ | _]}, _) -> Subjects;
filter_subjects(#{<<"filter_subject">> := Subject}, _) when Subject =/= <<>>, Subject =/= null -> [Subject];
filter_subjects(_, Bucket) -> [all_keys(Bucket)].

consumer_name(Name, undefined, Config) ->
    case maps:get(<<"name">>, Config, <<>>) of
        Empty when Empty =:= <<>>; Empty =:= null -> undefined;
        Given -> valid_name(Name, Given)
    end;
consumer_name(Name, Named, _) ->
    valid_name(Name, Named).

valid_name(Name, Given) ->
    IsValid =
        is_binary(Given) andalso Given =/= <<>> andalso
            binary:match(Given, [<<".">>, <<"*">>, <<">">>, <<" ">>, <<"\r">>, <<"\n">>, <<"\t">>]) =:=
                nomatch,
    case IsValid of
        true -> Given;
        false -> fail(type(Name), {consumer_option, <<"name">>})
    end.

%% A key has one value, so the last value of each is all that there is.
start(Name, Config) ->
    case maps:get(<<"deliver_policy">>, Config, <<"all">>) of
        <<"all">> -> 0;
        <<"last_per_subject">> -> 0;
        <<"new">> -> new;
        <<"by_start_sequence">> ->
            case Config of
                #{<<"opt_start_seq">> := Start} when is_integer(Start), Start >= 0 -> Start;
                #{} -> fail(type(Name), {consumer_option, <<"opt_start_seq">>})
            end;
        _ -> fail(type(Name), {consumer_option, <<"deliver_policy">>})
    end.

milliseconds(Key, Config) ->
    case Config of
        #{Key := Ns} when is_integer(Ns), Ns > 0 -> max(1, min(Ns div ?NS_PER_MS, 16#7FFFFFFF));
        #{} -> 0
    end.
