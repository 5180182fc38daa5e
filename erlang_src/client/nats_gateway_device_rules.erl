%% The way of a request to a device that answers on a topic of its own: which topic its command goes
%% to, and where the answer will come.
-module(nats_gateway_device_rules).

-export([route/3]).

-export_type([route/0]).

%% All with the mountpoint. `filter' is what is subscribed for the answer: it has a `+' for each level
%% with an id, so that one subscription serves all requests to a device.
-type route() :: #{command := binary(), answer := binary(), filter := binary()}.

-define(ID_BYTES, 12).
-define(MAX_TOPIC, 65535).

%% `Topic' is what the subject of the request stands for. With `no_topic' a rule matches, but nothing
%% can be published by it: the topic would be one of the broker's, or longer than MQTT allows.
-spec route(nats_gateway_nif:topic(), Mountpoint :: binary(), [nats_gateway_device_config:rule()]) ->
    none | no_topic | route().
route(Topic, Mountpoint, Rules) when is_binary(Topic) ->
    case nats_gateway_host:unmount(Topic, Mountpoint) of
        %% As in MQTT, no wildcard stands for a name of the broker.
        <<"$", _/binary>> ->
            none;
        Unmounted ->
            first(Rules, binary:split(Unmounted, <<"/">>, [global]), Mountpoint)
    end;
route(_, _, _) ->
    none.

first([], _, _) ->
    none;
first([Rule = #{subject := Pattern} | Rules], Levels, Mountpoint) ->
    case match(Pattern, Levels, []) of
        {ok, Values} -> fill(Rule, Values, Mountpoint);
        no -> first(Rules, Levels, Mountpoint)
    end.

%% What the wildcards stand for, in order.
match([], [], Values) -> {ok, lists:reverse(Values)};
match([rest], [_ | _] = Levels, Values) -> {ok, lists:reverse(Values, [lists:join($/, Levels)])};
match([one | Pattern], [Level | Levels], Values) -> match(Pattern, Levels, [Level | Values]);
match([Level | Pattern], [Level | Levels], Values) -> match(Pattern, Levels, Values);
match(_, _, _) -> no.

fill(#{command := CommandTemplate, answer := AnswerTemplate}, Values, Mountpoint) ->
    Id = id(CommandTemplate),
    Command = topic(CommandTemplate, Values, Id),
    Answer = topic(AnswerTemplate, Values, Id),
    case is_usable(Command) andalso is_usable(Answer) andalso Command =/= Answer of
        true ->
            #{
                command => <<Mountpoint/binary, Command/binary>>,
                answer => <<Mountpoint/binary, Answer/binary>>,
                filter => <<Mountpoint/binary, (filter(Answer, Id))/binary>>
            };
        false ->
            no_topic
    end.

%% Nobody can guess the next one, and no two clients or gateways have the same.
id(Template) ->
    case lists:member(id, Template) of
        true -> binary:encode_hex(crypto:strong_rand_bytes(?ID_BYTES));
        false -> none
    end.

topic(Template, Values, Id) ->
    iolist_to_binary([
        case Part of
            id -> Id;
            N when is_integer(N) -> lists:nth(N, Values);
            Literal -> Literal
        end
     || Part <- Template
    ]).

is_usable(<<"$", _/binary>>) -> false;
is_usable(Topic) -> Topic =/= <<>> andalso byte_size(Topic) =< ?MAX_TOPIC.

filter(Answer, none) ->
    Answer;
filter(Answer, Id) ->
    Levels = [
        case binary:match(Level, Id) of
            nomatch -> Level;
            _ -> <<"+">>
        end
     || Level <- binary:split(Answer, <<"/">>, [global])
    ],
    iolist_to_binary(lists:join($/, Levels)).
